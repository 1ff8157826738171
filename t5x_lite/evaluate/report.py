"""The curves of runs as one picture."""

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from t5x_lite.errors import UserError

matplotlib.use("Agg")
from matplotlib import pyplot

PANELS = (
    ("learning_rate", "learning rate", "linear"),
    ("grad_norm", "gradient norm", "log"),
    ("tokens_per_second", "tokens per second", "linear"),
)


def draw(runs: Sequence[Path], to: Path) -> Path:
    """Loss over tokens (every step faint, smoothed, evaluations as points), learning rate, gradient norm, speed.

    Raises:
        UserError: a run without metrics.
    """
    figure, axes = pyplot.subplot_mosaic([["loss"] * 3, ["a", "b", "c"]], figsize=(11, 7), height_ratios=(2, 1))
    loss = axes["loss"]
    for number, run in enumerate(runs):
        lines = read(run)
        color = f"C{number}"
        tokens, values = series(lines, "loss")
        loss.plot(tokens, values, color=color, alpha=0.25, linewidth=0.8)
        loss.plot(tokens, smoothed(values), color=color, label=f"{run.name}: training")
        tokens, values = series(lines, "eval/loss")
        if len(values):
            label = f"{run.name}: validation, {values[-1]:.4f} at the end"
            loss.plot(tokens, values, "o--", color=color, markeredgecolor="black", markersize=5, label=label)
        for panel, (name, _, _) in zip("abc", PANELS, strict=True):
            axes[panel].plot(*series(lines, name), color=color, linewidth=1)
    loss.set(xlabel="tokens", ylabel="loss (nats per token)", title=", ".join(run.name for run in runs))
    loss.legend()
    for panel, (_, label, scale) in zip("abc", PANELS, strict=True):
        axes[panel].set(xlabel="tokens", title=label, yscale=scale)
    for axis in axes.values():
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(to, dpi=120)
    pyplot.close(figure)
    return to


def read(run: Path) -> list[dict[str, float]]:
    """The lines of `RUN/metrics.jsonl`; one that a kill has torn is left out."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{run}: has no metrics.jsonl; is it a run directory?")
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    if not found:
        raise UserError(f"{path}: is empty; train the run first")
    return found


def series(lines: Sequence[dict[str, float]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and values of one metric, where it was measured."""
    have = [(line["tokens"], line[name]) for line in lines if line.get(name) is not None]
    return (*np.array(have, float).T,) if have else (np.array([]), np.array([]))


def smoothed(values: np.ndarray) -> np.ndarray:
    """Running mean over a fiftieth of the values, centred."""
    width = max(len(values) // 50, 1)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    places = np.arange(len(values))
    first, last = np.maximum(places - width, 0), np.minimum(places + width + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)
