"""A picture of the training curves of runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase

from t5x_lite.data.mixture_file import read_mixture
from t5x_lite.errors import UserError
from t5x_lite.evaluate.curves import distinct_names, expert_loads, metric_series, smooth
from t5x_lite.evaluate.mixture_curve import MixtureCurve
from t5x_lite.metrics_file import read_metrics

matplotlib.use("Agg")
from matplotlib import pyplot

MetricLine: TypeAlias = Mapping[str, Any]
"""A line of `metrics.jsonl`: numbers, lists of numbers, or null."""

SMALL_PANELS = {
    "learning_rate": ("learning rate", "linear"),
    "grad_norm": ("gradient norm", "log"),
    "tokens_per_second": ("tokens per second", "linear"),
}
"""Title and vertical scale of the panels below the loss, by metric."""


def draw_report(runs: Sequence[Path], to: Path) -> Path:
    """Draw loss, learning rate, gradient norm and speed over the tokens of each run.

    The loss is drawn at every step (faint), smoothed, and as points of the validation loss. Where a run has experts,
    further panels show the load of each expert of the first such run, and the dropped choices of all such runs. Where
    a run mixes sources, a panel shows their shares in the first such run, and a line in the loss where a stage begins.

    Returns:
        The path of the picture, `to`.

    Raises:
        UserError: a run without metrics; a picture of a kind that cannot be written.
    """
    kinds = FigureCanvasBase.get_supported_filetypes()
    if to.suffix[1:].lower() not in kinds:
        endings = " or .".join(sorted(kinds))
        raise UserError(f"--to {to}: is not the name of a picture; it ends in .{endings}, and a page in .html")
    lines_of_runs = {}
    moe_runs = {}
    for run in runs:
        lines = read_metrics(run)
        lines_of_runs[run] = lines
        if "dropped_tokens" in lines[-1]:
            moe_runs[run] = lines
    mixed_runs = _read_mixtures(lines_of_runs)
    layout = [["loss"] * 3, list(SMALL_PANELS)]
    if moe_runs:
        layout.append(["load", "load", "dropped"])
    if mixed_runs:
        layout.append(["mixture"] * 3)
    figure, panels = pyplot.subplot_mosaic(
        layout,  # type: ignore[arg-type]
        figsize=(11, 3.5 + 3.5 * len(layout) / 2),
        height_ratios=[2, *[1] * (len(layout) - 1)],
    )
    names = distinct_names(list(lines_of_runs))
    with_positive_values = set()
    for number, (name, lines) in enumerate(zip(names, lines_of_runs.values(), strict=True)):
        color = f"C{number}"
        _draw_loss(panels["loss"], name, lines, color)
        for metric in SMALL_PANELS:
            tokens, values = metric_series(lines, metric)
            panels[metric].plot(tokens, values, color=color, linewidth=1)
            if (values > 0).any():
                with_positive_values.add(metric)
    title = ", ".join(names)
    panels["loss"].set(xlabel="tokens", ylabel="loss (nats per token)", title=title)
    panels["loss"].legend()
    for metric, (title, scale) in SMALL_PANELS.items():
        # A loss without gradients, such as that of equal rewards, has norms of zero, which a log scale cannot show.
        panels[metric].set(xlabel="tokens", title=title, yscale=scale if metric in with_positive_values else "linear")
    if moe_runs:
        _draw_expert_load(panels["load"], moe_runs)
        _draw_dropped(panels["dropped"], moe_runs)
    if mixed_runs:
        _draw_stages(panels["loss"], panels["mixture"], mixed_runs)
    for panel in panels.values():
        panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(to, dpi=120)
    pyplot.close(figure)
    return to


def _draw_loss(panel: Axes, name: str, lines: Sequence[MetricLine], color: str) -> None:
    tokens, values = metric_series(lines, "loss")
    panel.plot(tokens, values, color=color, alpha=0.25, linewidth=0.8)
    panel.plot(tokens, smooth(values), color=color, label=f"{name}: training")
    tokens, values = metric_series(lines, "eval/loss")
    if len(values):
        label = f"{name}: validation, {values[-1]:.4f} at the end"
        panel.plot(tokens, values, "o--", color=color, markeredgecolor="black", markersize=5, label=label)
    _draw_forecast(panel, lines, color)


def pending_forecast(lines: Sequence[MetricLine]) -> MetricLine | None:
    """Return the line with the newest forecast; None if the run has none or has reached its end."""
    forecasts = [line for line in lines if line.get("predicted/loss") is not None]
    if not forecasts or forecasts[-1]["predicted/tokens"] <= lines[-1]["tokens"]:
        return None
    return forecasts[-1]


def _draw_forecast(panel: Axes, lines: Sequence[MetricLine], color: str) -> None:
    """Draw the pending forecast with its interval."""
    newest = pending_forecast(lines)
    if newest is None:
        return
    loss = newest["predicted/loss"]
    low = newest["predicted/low"]
    high = newest["predicted/high"]
    below = max(loss - low, 0)
    above = max(high - loss, 0)
    label = f"forecast of the last tenth's mean: {loss:.3f} ({low:.3f} to {high:.3f})"
    panel.errorbar(newest["predicted/tokens"], loss, [[below], [above]], fmt="D", color=color, capsize=5, label=label)


def _draw_expert_load(panel: Axes, runs: Mapping[Path, Sequence[MetricLine]]) -> None:
    """Draw the load of every expert of the first run that has it: bands, equally wide when the load is balanced."""
    for run, lines in runs.items():
        tokens, load = expert_loads(lines)
        if len(load):
            bands = np.stack([smooth(expert) for expert in load.T])
            panel.stackplot(tokens, bands, colors=matplotlib.color_sequences["tab20"])
            panel.set(ylim=(0, 1), xlabel="tokens", title=f"{run.name}: share of the choices of each expert")
            return


def _read_mixtures(lines_of_runs: Mapping[Path, Sequence[MetricLine]]) -> dict[Path, MixtureCurve]:
    """Return the mixture of each run that has several sources or stages."""
    curves = {}
    for run, lines in lines_of_runs.items():
        stages = read_mixture(run)
        if stages:
            curves[run] = MixtureCurve.of(stages, lines[-1]["step"])
    return curves


def _draw_stages(loss_panel: Axes, panel: Axes, curves: Mapping[Path, MixtureCurve]) -> None:
    """Draw where the stages of all runs begin, and the shares of the sources in the first run."""
    for curve in curves.values():
        _draw_borders(loss_panel, curve)
    first = next(iter(curves))
    _draw_mixture(panel, first.name, curves[first])


def _draw_borders(panel: Axes, curve: MixtureCurve) -> None:
    """Draw a line where each stage after the first begins."""
    for tokens in curve.begins[1:]:
        panel.axvline(tokens, color="black", linestyle=":", linewidth=0.8)


def _draw_mixture(panel: Axes, name: str, curve: MixtureCurve) -> None:
    """Draw the shares of the sources over the tokens of a run, and the name of each stage where it begins."""
    panel.stackplot(*curve.steps(), labels=curve.sources, colors=matplotlib.color_sequences["tab20"])
    _draw_borders(panel, curve)
    for tokens, stage in zip(curve.begins, curve.stages, strict=True):
        panel.annotate(f" {stage}", (tokens, 1.0), va="top")
    panel.set(ylim=(0, 1), xlabel="tokens", title=f"{name}: share of each source in the rows")
    panel.legend(loc="lower left")


def _draw_dropped(panel: Axes, runs: Mapping[Path, Sequence[MetricLine]]) -> None:
    for run, lines in runs.items():
        tokens, values = metric_series(lines, "dropped_tokens")
        panel.plot(tokens, smooth(values), linewidth=1, label=run.name)
    panel.set(xlabel="tokens", title="share of choices dropped", ylim=(0, None))
    if len(runs) > 1:
        panel.legend()
