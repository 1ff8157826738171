"""The tasks of a sweep as a figure: two rows for each task, over FLOPs and over N."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from t5x_lite.sweep.abilities import AXES, Abilities, AbilityCurve, samples_by_size

matplotlib.use("Agg")
from matplotlib import pyplot

COLUMNS = (
    ("accuracy", "loss"),
    ("log_likelihood_per_token", "log_likelihood"),
    ("brier",),
    ("ece",),
)
"""The metrics of each column; the first that a task has is drawn."""
OTHER_SIZE = {"flops": "parameters", "parameters": "flops"}
COLOR_TITLES = {"flops": "log10 C", "parameters": "log10 N"}
PANEL_INCHES = (4.2, 3.0)


def draw_abilities(abilities: Abilities, path: Path) -> Path:
    """Draw each task in two rows. Colours are the other size: N over FLOPs, and C over N.

    Values have bootstrap intervals over the examples. Runs of the same N, or of the same budget, are connected. A red
    title marks a significant fall. Beside exact match, a dashed line is the mean probability of the whole answer.
    """
    tasks = abilities.curves
    rows = len(AXES) * len(tasks)
    size = (PANEL_INCHES[0] * len(COLUMNS), PANEL_INCHES[1] * rows)
    figure, axes = pyplot.subplots(rows, len(COLUMNS), figsize=size, squeeze=False)
    row = 0
    for task in tasks:
        for axis in AXES:
            _draw_row(figure, axes[row], abilities, task, axis)
            row += 1
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return path


def _draw_row(figure: Figure, panels: np.ndarray, abilities: Abilities, task: str, axis: str) -> None:
    """Draw the metrics of a task over one size."""
    for panel, candidates in zip(panels, COLUMNS, strict=True):
        curve = _choose_curve(abilities, task, candidates)
        if curve is None:
            panel.set_axis_off()
            continue
        _draw_curve(figure, panel, curve, axis)
        _set_title(panel, abilities, curve, axis)
        probability = abilities.curves[task].get("probability")
        if curve.title == "exact match" and probability is not None:
            sizes, probabilities = samples_by_size(probability, axis)
            panel.plot(sizes, probabilities.mean(axis=0), "k--", linewidth=1, label="probability of the answer")
            panel.legend(fontsize=7)
    if axis == "flops" and task in abilities.notes:
        panels[0].annotate(
            f"{task}: {abilities.notes[task]}", (0, 1.16), xycoords="axes fraction", fontsize=8, color="C3"
        )


def _choose_curve(abilities: Abilities, task: str, candidates: tuple[str, ...]) -> AbilityCurve | None:
    """Return the first of some metrics that the task has; with choices, the likelihood of the whole answer."""
    curves = abilities.curves[task]
    if "brier" in curves:
        candidates = tuple(name for name in candidates if name != "log_likelihood_per_token")
    return next((curves[name] for name in candidates if name in curves), None)


def _draw_curve(figure: Figure, panel: Axes, curve: AbilityCurve, axis: str) -> None:
    sizes = curve.sizes(axis)
    colors = np.log10(curve.sizes(OTHER_SIZE[axis]))
    _connect_runs(panel, curve, axis)
    intervals = curve.intervals()
    if intervals is not None:
        lengths = np.abs(intervals - curve.values)
        panel.errorbar(sizes, curve.values, lengths, fmt="none", ecolor="grey", elinewidth=0.8, capsize=2)
    scatter = panel.scatter(sizes, curve.values, c=colors, s=18, zorder=3)
    figure.colorbar(scatter, ax=panel, label=COLOR_TITLES[OTHER_SIZE[axis]])
    panel.set(xscale="log", xlabel=AXES[axis])
    panel.grid(alpha=0.3)


def _connect_runs(panel: Axes, curve: AbilityCurve, axis: str) -> None:
    """Connect the runs of the same N over FLOPs, and those of the same budget over N."""
    groups: dict[float, list[int]] = {}
    for number, run in enumerate(curve.runs):
        group = run.parameters if axis == "flops" else run.budget
        if group > 0:
            groups.setdefault(group, []).append(number)
    sizes = curve.sizes(axis)
    for numbers in groups.values():
        ordered = sorted(numbers, key=sizes.__getitem__)
        panel.plot(sizes[ordered], curve.values[ordered], color="grey", alpha=0.5, linewidth=0.8)


def _set_title(panel: Axes, abilities: Abilities, curve: AbilityCurve, axis: str) -> None:
    p_value = abilities.inverse.get((curve.task, curve.metric, axis))
    if p_value is None:
        panel.set_title(f"{curve.task}: {curve.title}", fontsize=9)
        return
    panel.set_title(f"{curve.task}: {curve.title}\ninverse scaling (p = {p_value:.2g})", fontsize=9, color="C3")
