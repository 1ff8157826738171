"""A study as one picture."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.polynomial.polynomial import polyval

from t5x_lite.sweep.fit import Study
from t5x_lite.sweep.frontier import Frontier

matplotlib.use("Agg")
from matplotlib import pyplot

COLORS = {"training curves": "C2", "IsoFLOP parabolas": "C1", "L(N, D)": "C0"}


def draw(study: Study, to: Path) -> Path:
    """Loss over FLOPs with the envelope, IsoFLOP curves with minima, best N and D over C, residuals."""
    figure, axes = pyplot.subplots(2, 2, figsize=(13, 10))
    (losses, isoflops), (best, residuals) = axes
    points = study.parametric.points
    c = np.geomspace(points.flops.min(), 10 * points.flops.max(), 60)
    _losses(losses, study, c)
    _isoflops(isoflops, study)
    for name, line in study.frontiers.items():
        if isinstance(line, Frontier):
            at, color = np.array([line.at(float(one))[0] for one in c]), COLORS[name]
            for column, letter, style, marker in ((0, "N", "-", "o"), (1, "D", "--", "s")):
                label = f"{name}: {letter} ∝ C^{line.lines[2 * column + 1]:.3f}"
                best.plot(c, at[:, column], style, color=color, label=label)
                best.plot(line.seen[:, 0], line.seen[:, column + 1], marker, color=color, markersize=4)
    title = "best parameters N (circles) and tokens D (squares)"
    best.set(xscale="log", yscale="log", xlabel="FLOPs", title=title)
    best.legend(fontsize=8)
    shown = residuals.scatter(points.flops, 100 * study.parametric.residuals, c=np.log10(points.parameters), s=18)
    figure.colorbar(shown, ax=residuals, label="log10 N")
    residuals.axhline(0, color="black", linewidth=0.8)
    residuals.set(xscale="log", xlabel="FLOPs", title="loss above the law E + A/N^α + B/D^β (%)")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(to, dpi=120)
    pyplot.close(figure)
    return to


def _losses(axis: Any, study: Study, c: np.ndarray) -> None:
    points, best = study.parametric.points, np.array([study.least(float(one))[0][0] for one in c])
    for curve in study.found.curves:
        axis.plot(curve.flops, curve.loss, color="grey", alpha=0.4, linewidth=0.7)
    shown = axis.scatter(points.flops, points.loss, c=np.log10(points.parameters), s=18, zorder=3)
    axis.figure.colorbar(shown, ax=axis, label="log10 N")
    axis.plot(c, best, color="black", label="best for C by E + A/N^α + B/D^β")
    axis.set(xscale="log", yscale="log", xlabel="FLOPs", title="loss (nats per token)")
    axis.set_ylim(min(0.97 * points.loss.min(), 0.99 * best.min()), 1.05 * points.loss.max())
    axis.legend(fontsize=8)


def _isoflops(axis: Any, study: Study) -> None:
    points = study.parametric.points
    for number, one in enumerate(study.parabolas):
        color = f"C{number % 10}"
        n = points.parameters[one.chosen]
        axis.plot(n, points.loss[one.chosen], "o", color=color, markersize=4, label=f"C = {one.flops:.3g}")
        if np.isfinite(one.coefficients).all():
            along = np.geomspace(n.min(), n.max(), 50)
            axis.plot(along, polyval(np.log(along), one.coefficients), color=color, linewidth=1)
        if one.minimum:
            axis.plot(one.minimum[0], one.minimum[2], "*", color=color, markersize=13, markeredgecolor="black")
    axis.set(xscale="log", xlabel="parameters N", title="IsoFLOP curves, their minima as stars")
    if study.parabolas:
        axis.legend(fontsize=8)
