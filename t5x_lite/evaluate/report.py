"""The curves of runs as one picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from t5x_lite.evaluate.curves import metric_series, read_metrics, smooth

matplotlib.use("Agg")
from matplotlib import pyplot

PANELS = (
    ("learning_rate", "learning rate", "linear"),
    ("grad_norm", "gradient norm", "log"),
    ("tokens_per_second", "tokens per second", "linear"),
)


def draw_report(runs: Sequence[Path], to: Path) -> Path:
    """Loss over tokens (every step faint, smoothed, evaluations as points), learning rate, gradient norm, speed.

    Where a run has experts, also the load of each of the first such run, and what all of them drop.

    Raises:
        UserError: a run without metrics.
    """
    found = {run: read_metrics(run) for run in runs}
    mixtures = {run: lines for run, lines in found.items() if "dropped_tokens" in lines[-1]}
    rows: list[Any] = [["loss"] * 3, ["a", "b", "c"], ["load", "load", "dropped"]][: 3 if mixtures else 2]
    figure, axes = pyplot.subplot_mosaic(
        rows, figsize=(11, 3.5 + 3.5 * len(rows) / 2), height_ratios=[2, 1, 1][: len(rows)]
    )
    loss = axes["loss"]
    for number, (run, lines) in enumerate(found.items()):
        color = f"C{number}"
        tokens, values = metric_series(lines, "loss")
        loss.plot(tokens, values, color=color, alpha=0.25, linewidth=0.8)
        loss.plot(tokens, smooth(values), color=color, label=f"{run.name}: training")
        tokens, values = metric_series(lines, "eval/loss")
        if len(values):
            label = f"{run.name}: validation, {values[-1]:.4f} at the end"
            loss.plot(tokens, values, "o--", color=color, markeredgecolor="black", markersize=5, label=label)
        _end(loss, lines, color)
        for panel, (name, _, _) in zip("abc", PANELS, strict=True):
            axes[panel].plot(*metric_series(lines, name), color=color, linewidth=1)
    loss.set(xlabel="tokens", ylabel="loss (nats per token)", title=", ".join(run.name for run in runs))
    loss.legend()
    for panel, (_, label, scale) in zip("abc", PANELS, strict=True):
        axes[panel].set(xlabel="tokens", title=label, yscale=scale)
    if mixtures:
        _experts(axes["load"], axes["dropped"], mixtures)
    for axis in axes.values():
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(to, dpi=120)
    pyplot.close(figure)
    return to


def _end(loss: Any, lines: Sequence[Mapping[str, Any]], color: str) -> None:
    """The newest prediction of the training loss at the end of a run that is not there yet, with its interval."""
    said = [line for line in lines if line.get("predicted/loss") is not None]
    if said and said[-1]["predicted/tokens"] > lines[-1]["tokens"]:
        tokens, value, low, high = (said[-1][f"predicted/{name}"] for name in ("tokens", "loss", "low", "high"))
        label = f"foretold end: {value:.3f} ({low:.3f} to {high:.3f})"
        loss.errorbar(
            tokens, value, [[max(value - low, 0)], [max(high - value, 0)]], fmt="D", color=color, capsize=5, label=label
        )


def _experts(load: Any, dropped: Any, runs: Mapping[Path, list[dict[str, Any]]]) -> None:
    """The load of every expert over time, bands that are equally wide in balance; and the share of dropped choices."""
    first = next((run for run, lines in runs.items() if "expert_load" in lines[-1]), None)
    if first is not None:
        tokens, shares = (
            metric_series(runs[first], "tokens")[1],
            np.array([line["expert_load"] for line in runs[first]]),
        )
        smoothed = np.stack([smooth(expert) for expert in shares.T])
        load.stackplot(tokens, smoothed, colors=[pyplot.get_cmap("tab20")(n % 20) for n in range(len(smoothed))])
        load.set(ylim=(0, 1), xlabel="tokens", title=f"{first.name}: share of the choices of each expert")
    for run, lines in runs.items():
        tokens, values = metric_series(lines, "dropped_tokens")
        dropped.plot(tokens, smooth(values), linewidth=1, label=run.name)
    dropped.set(xlabel="tokens", title="share of choices dropped", ylim=(0, None))
    if len(runs) > 1:
        dropped.legend()
