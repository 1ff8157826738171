"""A study as one figure."""

from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from numpy.polynomial.polynomial import polyval

from t5x_lite.laws.compute_optimal import Frontier
from t5x_lite.laws.isoflop import Parabola
from t5x_lite.sweep.study import Study

matplotlib.use("Agg")
from matplotlib import pyplot

COLORS = {"training curves": "C2", "IsoFLOP parabolas": "C1", "L(N, D)": "C0"}
NUM_BUDGETS = 60
"""Values of C at which the frontiers are drawn."""


def draw_study(study: Study, path: Path) -> Path:
    """Draw loss over FLOPs with the frontier, IsoFLOP curves with minima, best N and D over C, and residuals."""
    figure, axes = pyplot.subplots(2, 2, figsize=(13, 10))
    points = study.parametric.points
    budgets = np.geomspace(points.flops.min(), 10 * points.flops.max(), NUM_BUDGETS)
    _draw_losses(axes[0, 0], study, budgets)
    _draw_isoflops(axes[0, 1], study)
    _draw_frontiers(axes[1, 0], study, budgets)
    _draw_residuals(axes[1, 1], study)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def _draw_losses(axis: Axes, study: Study, budgets: Float[np.ndarray, " budgets"]) -> None:
    points = study.parametric.points
    lowest_losses = []
    for flops in budgets:
        loss, _ = study.lowest_loss(float(flops))
        lowest_losses.append(loss[0])
    lowest = np.array(lowest_losses)
    for curve in study.sweep_points.curves:
        axis.plot(curve.flops, curve.loss, color="grey", alpha=0.4, linewidth=0.7)
    scatter = axis.scatter(points.flops, points.loss, c=np.log10(points.parameters), s=18, zorder=3)
    axis.figure.colorbar(scatter, ax=axis, label="log10 N")
    axis.plot(budgets, lowest, color="black", label="best for C by E + A/N^α + B/D^β")
    axis.set(xscale="log", yscale="log", xlabel="FLOPs", title="loss (nats per token)")
    axis.set_ylim(min(0.97 * points.loss.min(), 0.99 * lowest.min()), 1.05 * points.loss.max())
    axis.legend(fontsize=8)


def _draw_isoflops(axis: Axes, study: Study) -> None:
    for index, parabola in enumerate(study.parabolas):
        _draw_parabola(axis, study, parabola, f"C{index % 10}")
    axis.set(xscale="log", xlabel="parameters N", title="IsoFLOP curves, their minima as stars")
    if study.parabolas:
        axis.legend(fontsize=8)


def _draw_parabola(axis: Axes, study: Study, parabola: Parabola, color: str) -> None:
    points = study.parametric.points
    parameters = points.parameters[parabola.indices]
    loss = points.loss[parabola.indices]
    axis.plot(parameters, loss, "o", color=color, markersize=4, label=f"C = {parabola.flops:.3g}")
    if np.isfinite(parabola.coefficients).all():
        grid = np.geomspace(parameters.min(), parameters.max(), 50)
        axis.plot(grid, polyval(np.log(grid), parabola.coefficients), color=color, linewidth=1)
    minimum = parabola.minimum
    if minimum is not None:
        axis.plot(minimum.parameters, minimum.loss, "*", color=color, markersize=13, markeredgecolor="black")


def _draw_frontiers(axis: Axes, study: Study, budgets: Float[np.ndarray, " budgets"]) -> None:
    for name, frontier in study.frontiers.items():
        if isinstance(frontier, Frontier):
            _draw_frontier(axis, name, frontier, budgets)
    title = "best parameters N (circles) and tokens D (squares)"
    axis.set(xscale="log", yscale="log", xlabel="FLOPs", title=title)
    axis.legend(fontsize=8)


def _draw_frontier(axis: Axes, name: str, frontier: Frontier, budgets: Float[np.ndarray, " budgets"]) -> None:
    predictions = []
    for flops in budgets:
        sizes, _ = frontier.predict(float(flops))
        predictions.append(sizes)
    best_sizes = np.array(predictions)
    color = COLORS[name]
    _, n_exponent, _, d_exponent = frontier.lines
    axis.plot(budgets, best_sizes[:, 0], "-", color=color, label=f"{name}: N ∝ C^{n_exponent:.3f}")
    axis.plot(frontier.optima[:, 0], frontier.optima[:, 1], "o", color=color, markersize=4)
    axis.plot(budgets, best_sizes[:, 1], "--", color=color, label=f"{name}: D ∝ C^{d_exponent:.3f}")
    axis.plot(frontier.optima[:, 0], frontier.optima[:, 2], "s", color=color, markersize=4)


def _draw_residuals(axis: Axes, study: Study) -> None:
    points = study.parametric.points
    percent = 100 * study.parametric.residuals
    scatter = axis.scatter(points.flops, percent, c=np.log10(points.parameters), s=18)
    axis.figure.colorbar(scatter, ax=axis, label="log10 N")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(xscale="log", xlabel="FLOPs", title="loss above the law E + A/N^α + B/D^β (%)")
