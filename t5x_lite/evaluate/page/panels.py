"""The panels of a report: curves over tokens, as `page.js` draws them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float

from t5x_lite.evaluate.curves import expert_loads, metric_series, smooth
from t5x_lite.evaluate.mixture_curve import MixtureCurve
from t5x_lite.evaluate.page.reported_run import ReportedRun
from t5x_lite.evaluate.report import pending_forecast
from t5x_lite.integers import ceil_div

MOST_POINTS = 2000
"""Points of a curve; a longer one is drawn as means of neighbours."""
MOST_SCORES = 24
"""Panels of scores; BLiMP alone has more than a hundred."""
DIGITS = 6
"""Significant digits of a number in the page."""
METRICS: Mapping[str, tuple[str, Literal["linear", "log"]]] = {
    "learning_rate": ("learning rate", "linear"),
    "grad_norm": ("gradient norm", "log"),
    "tokens_per_second": ("tokens per second", "linear"),
    "mfu": ("model FLOPs utilisation", "linear"),
    "goodput": ("goodput", "linear"),
    "dropped_tokens": ("share of the experts' choices dropped", "linear"),
    "expert_load_entropy": ("entropy of the experts' loads (1 in balance)", "linear"),
}
"""Title and vertical scale of the panels with one curve for each run."""


@dataclass(frozen=True)
class Curve:
    """A curve of a panel.

    Attributes:
        run: number of its run, which has a colour; -1 for a band of a stack, which has its own.
        name: the label.
        x: tokens.
        y: values; None where one is not finite.
        style: `faint` for single steps, `line`, or `points` for evaluations.
    """

    run: int
    name: str
    x: list[int]
    y: list[float | None]
    style: Literal["line", "faint", "points"] = "line"


@dataclass(frozen=True)
class Panel:
    """A diagram.

    Attributes:
        title: the heading.
        curves: its curves; in a stack from the bottom to the top.
        scale: of the vertical axis.
        stacked: the curves are bands on each other.
        marks: vertical lines: tokens and a text.
        intervals: forecasts: number of the run, tokens, value, lower and upper end.
    """

    title: str
    curves: Sequence[Curve]
    scale: Literal["linear", "log"] = "linear"
    stacked: bool = False
    marks: Sequence[tuple[float, str]] = ()
    intervals: Sequence[tuple[int, float, float, float, float]] = field(default=())


def build_panels(runs: Sequence[ReportedRun]) -> list[Panel]:
    """Return the panels of a report; those without a curve are left out."""
    panels = [_loss_panel(runs)]
    for name in _score_names(runs)[:MOST_SCORES]:
        panels.append(_metric_panel(runs, name, name, "points"))
    for metric, (title, scale) in METRICS.items():
        panels.append(_metric_panel(runs, metric, title, "line", scale))
    panels += _expert_panels(runs)
    panels += [_mixture_panel(run.name, run.mixture) for run in runs if run.mixture is not None]
    return [panel for panel in panels if panel.curves]


def _loss_panel(runs: Sequence[ReportedRun]) -> Panel:
    curves = []
    intervals = []
    for number, run in enumerate(runs):
        tokens, values = metric_series(run.lines, "loss")
        curves.append(make_curve(number, f"{run.name}: single steps", tokens, values, "faint"))
        curves.append(make_curve(number, f"{run.name}: training", tokens, smooth(values)))
        tokens, values = metric_series(run.lines, "eval/loss")
        if len(values):
            curves.append(make_curve(number, f"{run.name}: validation", tokens, values, "points"))
        newest = pending_forecast(run.lines)
        if newest is not None:
            ends = [newest[f"predicted/{name}"] for name in ("tokens", "loss", "low", "high")]
            intervals.append((number, *map(_round, ends)))
    marks = []
    for run in runs:
        if run.mixture is not None:
            marks += _stage_marks(run.mixture)[1:]
    title = "loss (nats per target)"
    return Panel(title, curves, marks=marks, intervals=intervals)  # type: ignore[arg-type]


def _score_names(runs: Sequence[ReportedRun]) -> list[str]:
    """Return the names of the evaluations' scores, except the loss, which is in the first panel."""
    names: dict[str, None] = {}
    for run in runs:
        for line in run.lines:
            names |= dict.fromkeys(name for name in line if name.startswith("eval/"))
    names.pop("eval/loss", None)
    names.pop("eval/tokens", None)
    return list(names)


def _metric_panel(
    runs: Sequence[ReportedRun],
    metric: str,
    title: str,
    style: Literal["line", "points"],
    scale: Literal["linear", "log"] = "linear",
) -> Panel:
    curves = []
    for number, run in enumerate(runs):
        tokens, values = metric_series(run.lines, metric)
        if len(values):
            curves.append(make_curve(number, run.name, tokens, values, style))
    return Panel(title, curves, scale)


def _expert_panels(runs: Sequence[ReportedRun]) -> list[Panel]:
    """Return a stack for each run with experts: bands that are equally wide when the load is balanced."""
    panels = []
    for run in runs:
        tokens, load = expert_loads(run.lines)
        if not len(load):
            continue
        bands = []
        for expert, share in enumerate(load.T):
            bands.append(make_curve(-1, f"expert {expert}", tokens, smooth(share)))
        panels.append(Panel(f"{run.name}: share of the choices of each expert", bands, stacked=True))
    return panels


def _mixture_panel(name: str, mixture: MixtureCurve) -> Panel:
    tokens, shares = mixture.steps()
    bands = []
    for source, share in zip(mixture.sources, shares, strict=True):
        bands.append(make_curve(-1, source, tokens, share))
    return Panel(f"{name}: share of each source in the rows", bands, stacked=True, marks=_stage_marks(mixture))


def _stage_marks(mixture: MixtureCurve) -> list[tuple[float, str]]:
    return list(zip(mixture.begins, mixture.stages, strict=True))


def make_curve(
    run: int,
    name: str,
    x: Float[np.ndarray, " points"],
    y: Float[np.ndarray, " points"],
    style: Literal["line", "faint", "points"] = "line",
) -> Curve:
    """Return a curve of at most `MOST_POINTS` points: means of equally many neighbours, if there are more."""
    size = ceil_div(len(x), MOST_POINTS)
    if size > 1:
        starts = np.arange(0, len(x), size)
        counts = np.diff([*starts, len(x)])
        x = np.add.reduceat(x, starts) / counts
        y = np.add.reduceat(y, starts) / counts
    values = [_round(value) if np.isfinite(value) else None for value in y.tolist()]
    return Curve(run, name, [round(tokens) for tokens in x.tolist()], values, style)


def _round(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
