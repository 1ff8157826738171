"""Approach 1 of Hoffmann et al. 2022, §3.1: at each C, the model size whose training curve is lowest."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from t5x_lite.laws.compute_optimal import Frontier, fit_line_through
from t5x_lite.laws.fit import NotFitted

GRID_SIZE = 1500
"""Values of C, evenly spaced in logarithm, at which the curves are compared (Hoffmann et al. 2022, §3.1)."""
MAX_DRAWS = 200
"""Upper limit for the bootstrap samples, each of which compares all curves again."""


@dataclass(frozen=True)
class TrainingCurve:
    """The loss of one run during training, by the FLOPs (ascending) and the tokens that it has used.

    Attributes:
        name: name of the run.
        parameters: N.
        flops: C, ascending.
        tokens: D.
        loss: in nats.
        experts: experts of a layer; 1 in a dense model.
    """

    name: str
    parameters: float
    flops: Float[np.ndarray, " steps"]
    tokens: Float[np.ndarray, " steps"]
    loss: Float[np.ndarray, " steps"]
    experts: float = 1.0


@dataclass(frozen=True)
class _CurvesOnGrid:
    """Curves, one per row, at the same values of C; the loss is infinite where a curve has no value."""

    log_c: Float[np.ndarray, " grid"]
    log_n: Float[np.ndarray, " curves"]
    loss: Float[np.ndarray, "curves grid"]
    log_d: Float[np.ndarray, "curves grid"]


def frontier_from_curves(curves: Sequence[TrainingCurve], draws: int, seed: int = 0) -> Frontier | NotFitted:
    """Approach 1: fit the lines to the best size at each C. A bootstrap sample draws curves, with replacement."""
    num_sizes = len({curve.parameters for curve in curves})
    if num_sizes < 3:
        return NotFitted(f"needs training curves of 3 sizes, found {num_sizes}")
    on_grid = _interpolate(curves)
    optima = _find_optima(on_grid, np.arange(len(curves)))
    if optima is None:
        return NotFitted("needs 2 sizes between the smallest and the largest that are best at some C")

    rng = np.random.default_rng(seed)
    num_samples = min(draws, MAX_DRAWS)
    bootstrap = []
    for _ in range(num_samples):
        sample_optima = _find_optima(on_grid, rng.integers(0, len(curves), len(curves)))
        if sample_optima is not None:
            bootstrap.append(fit_line_through(sample_optima))
    if 2 * len(bootstrap) < num_samples:
        # There are too few sizes to leave any out. No interval is better than a wrong one.
        bootstrap = [np.full(4, np.nan)]
    return Frontier(fit_line_through(optima), np.array(bootstrap).reshape(-1, 4), optima, len(curves), 1)


def _interpolate(curves: Sequence[TrainingCurve]) -> _CurvesOnGrid:
    lowest = min(curve.flops[0] for curve in curves)
    highest = max(curve.flops[-1] for curve in curves)
    log_c = np.linspace(np.log(lowest), np.log(highest), GRID_SIZE)
    losses = []
    log_d = []
    for curve in curves:
        curve_log_c = np.log(curve.flops)
        losses.append(np.interp(log_c, curve_log_c, curve.loss, np.nan, np.nan))
        log_d.append(np.interp(log_c, curve_log_c, np.log(curve.tokens)))
    log_n = np.log([curve.parameters for curve in curves])
    loss = np.stack(losses)
    loss[np.isnan(loss)] = np.inf
    return _CurvesOnGrid(log_c, log_n, loss, np.stack(log_d))


def _find_optima(curves: _CurvesOnGrid, chosen: Int[np.ndarray, " chosen"]) -> Float[np.ndarray, "optima 3"] | None:
    """Return C, N and D of the lowest of the chosen curves at each C.

    A C is left out if the best size is the smallest or the largest of those that have a loss there: a size outside the
    range may be better. The result is None if fewer than two sizes remain.
    """
    loss = curves.loss[chosen]
    log_n = curves.log_n[chosen]
    lowest = loss.argmin(0)
    best_log_n = log_n[lowest]
    best_log_d = curves.log_d[chosen][lowest, np.arange(len(curves.log_c))]
    has_loss = np.isfinite(loss)
    smallest = np.where(has_loss, log_n[:, None], np.inf).min(0)
    largest = np.where(has_loss, log_n[:, None], -np.inf).max(0)
    is_inside = (best_log_n > smallest) & (best_log_n < largest)
    if len(np.unique(best_log_n[is_inside])) < 2:
        return None
    return np.exp(np.stack([curves.log_c, best_log_n, best_log_d], -1)[is_inside])
