"""The state of a run as lines of a terminal."""

import math
from collections.abc import Sequence

import numpy as np

from t5x_lite.evaluate.curves import smooth
from t5x_lite.progress import format_duration, format_si
from t5x_lite.watch.status import Status

BLOCKS = "▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 40
"""Characters of the curve of the loss."""
LABEL_WIDTH = 12
MOST_SCORES = 6
"""Scores of an evaluation that are shown."""


def format_status(status: Status) -> str:
    """Return the state of a run in lines: step, loss with a small curve, speed, checkpoint and evaluation."""
    rows = {"run": status.run, "step": _format_step(status)}
    if status.losses:
        rows["loss"] = _format_loss(status.losses)
    if status.tokens_per_second is not None:
        rows["speed"] = _format_speed(status)
    if status.tokens is not None:
        rows["tokens"] = format_si(status.tokens)
    rows["checkpoint"] = "none yet" if status.checkpoint is None else f"step {status.checkpoint}"
    if status.evaluation_step is not None:
        rows["evaluation"] = _format_evaluation(status)
    return "\n".join(f"{label:<{LABEL_WIDTH}}{text}" for label, text in rows.items())


def _format_step(status: Status) -> str:
    text = f"{status.step}/{status.steps} ({status.step / max(status.steps, 1):.1%})"
    if status.is_complete:
        return f"{text}, complete"
    if status.seconds_left is None:
        return f"{text}, no step is finished yet"
    return f"{text}, {format_duration(status.seconds_left)} left"


def _format_loss(losses: Sequence[float]) -> str:
    return f"{losses[-1]:.4f}  {sparkline(losses, SPARKLINE_WIDTH)}"


def _format_speed(status: Status) -> str:
    text = f"{format_si(status.tokens_per_second or 0.0)} tok/s"
    if status.mfu is not None:
        text += f", MFU {status.mfu:.1%}"
    return text


def _format_evaluation(status: Status) -> str:
    scores = []
    loss_first = sorted(status.evaluation.items(), key=lambda score: score[0] != "eval/loss")
    for name, value in loss_first[:MOST_SCORES]:
        scores.append(f"{name.removeprefix('eval/')} {value:.5g}")
    hidden = len(status.evaluation) - len(scores)
    if hidden:
        scores.append(f"and {hidden} more")
    return f"step {status.evaluation_step}: {', '.join(scores)}"


def sparkline(values: Sequence[float], width: int) -> str:
    """Return a curve of block characters: the smoothed values, from the least to the largest of those that are drawn.

    A value that is not finite is a space.
    """
    points = np.asarray(values, float)
    is_finite = np.isfinite(points)
    if not is_finite.any():
        return ""
    smoothed = np.full(len(points), math.nan)
    smoothed[is_finite] = smooth(points[is_finite])
    drawn = smoothed[np.linspace(0, len(points) - 1, min(width, len(points))).round().astype(int)]
    if np.isnan(drawn).all():
        return ""
    low = np.nanmin(drawn)
    span = np.nanmax(drawn) - low
    return "".join(_block(value, low, span) for value in drawn.tolist())


def _block(value: float, low: float, span: float) -> str:
    if math.isnan(value):
        return " "
    if span == 0:
        return BLOCKS[0]
    return BLOCKS[round((value - low) / span * (len(BLOCKS) - 1))]
