"""Approach 2 of Hoffmann et al. 2022, §3.2: the minima of parabolas through the runs of each FLOP budget."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from t5x_lite.laws.compute_optimal import Frontier, fit_line_through, fit_lines
from t5x_lite.laws.fit import NotFitted
from t5x_lite.laws.points import Points

BUDGET_WIDTH = 0.2
"""Width in log C, 10 % below and above, of a group of points that counts as one budget if the points name none."""
MIN_SIZES_OF_BUDGET = 6
"""Fewest sizes of such a group."""


class Minimum(NamedTuple):
    """The best run of a budget."""

    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Parabola:
    """L = q0 + q1·log N + q2·(log N)² through the runs of one budget.

    Attributes:
        flops: the budget.
        indices: which points were fitted.
        coefficients: q0, q1, q2; NaN where there are too few sizes.
        minimum: None where the parabola has none that can be used.
        problem: why it has none.
    """

    flops: float
    indices: Int[np.ndarray, " chosen"]
    coefficients: Float[np.ndarray, " 3"]
    minimum: Minimum | None
    problem: str = ""


def group_by_budget(points: Points) -> list[Int[np.ndarray, " chosen"]]:
    """Return the indices of the points of each budget, smallest budget first.

    If no point names its budget, the first budget is the window of log C that contains the most points. The next is
    that of the remaining points, and so on. Windows of too few sizes are left out.
    """
    if points.budget.any():
        budgets = np.unique(points.budget[points.budget > 0])
        return [np.flatnonzero(points.budget == budget) for budget in budgets]
    remaining = np.argsort(points.flops)
    groups = []
    while len(remaining) > 0:
        log_c = np.log(points.flops[remaining])
        ends = np.searchsorted(log_c, log_c + BUDGET_WIDTH, "right")
        first = int(np.argmax(ends - np.arange(len(log_c))))
        window = remaining[first : ends[first]]
        if len(np.unique(points.parameters[window])) >= MIN_SIZES_OF_BUDGET:
            groups.append(window)
        remaining = np.concatenate([remaining[:first], remaining[ends[first] :]])
    return sorted(groups, key=lambda window: float(np.mean(points.flops[window])))


def fit_parabolas(points: Points) -> list[Parabola]:
    """Fit a parabola to the runs of each budget."""
    return [_fit_parabola(points, indices) for indices in group_by_budget(points)]


def _fit_parabola(points: Points, indices: Int[np.ndarray, " chosen"]) -> Parabola:
    log_n = np.log(points.parameters[indices])
    flops = float(np.exp(np.log(points.flops[indices]).mean()))
    if len(np.unique(np.round(log_n, 3))) < 3:
        return Parabola(flops, indices, np.full(3, np.nan), None, "fewer than 3 sizes")
    q = np.polynomial.polynomial.polyfit(log_n, points.loss[indices], 2)
    lowest = -q[1] / (2 * q[2])
    if q[2] <= 0:
        return Parabola(flops, indices, q, None, "not convex")
    if not log_n.min() < lowest < log_n.max():
        return Parabola(flops, indices, q, None, "minimum outside the sizes tried")
    log_d_line = _tokens_line(points, indices)
    minimum = Minimum(
        parameters=float(np.exp(lowest)),
        tokens=float(np.exp(np.polyval(log_d_line, lowest))),
        loss=float(q[0] - q[1] ** 2 / 4 / q[2]),
    )
    return Parabola(flops, indices, q, minimum)


def _tokens_line(points: Points, indices: Int[np.ndarray, " chosen"]) -> Float[np.ndarray, " 2"]:
    """Return slope and intercept of log D over log N at one budget."""
    return np.polyfit(np.log(points.parameters[indices]), np.log(points.tokens[indices]), 1)


def frontier_from_parabolas(
    points: Points, parabolas: Sequence[Parabola], draws: int, seed: int = 0
) -> Frontier | NotFitted:
    """Approach 2: fit the lines to the minima of the parabolas.

    A bootstrap sample gives every run the residual of another run, drawn from those of all budgets.
    """
    usable = [parabola for parabola in parabolas if parabola.minimum is not None]
    if len(usable) < 2:
        return NotFitted(_explain_too_few(parabolas, len(usable)))
    residuals = np.concatenate([_standardised_residuals(points, parabola) for parabola in usable])
    if len(residuals) == 0:
        residuals = np.array([np.nan])
    rng = np.random.default_rng(seed)
    log_n = []
    log_d = []
    for parabola in usable:
        noise = rng.choice(residuals, (draws, len(parabola.indices)))
        lowest = _minima_with_noise(points, parabola, noise)
        log_n.append(lowest)
        log_d.append(np.polyval(_tokens_line(points, parabola.indices), lowest))
    log_c = np.log([parabola.flops for parabola in usable])
    bootstrap = fit_lines(log_c, np.stack(log_n, -1), np.stack(log_d, -1))
    optima = _optima(usable)
    num_points = sum(len(parabola.indices) for parabola in usable)
    return Frontier(fit_line_through(optima), bootstrap, optima, num_points, 3 * len(usable))


def _explain_too_few(parabolas: Sequence[Parabola], num_usable: int) -> str:
    reason = f"needs 2 budgets whose parabola has a minimum, found {num_usable}"
    problems = [f"C = {parabola.flops:.3g}: {parabola.problem}" for parabola in parabolas if parabola.problem]
    if problems:
        reason += f" ({'; '.join(problems)})"
    return reason


def _design(points: Points, parabola: Parabola) -> Float[np.ndarray, "chosen 3"]:
    """Return 1, log N and (log N)² of the runs."""
    return np.vander(np.log(points.parameters[parabola.indices]), 3, increasing=True)


def _standardised_residuals(points: Points, parabola: Parabola) -> Float[np.ndarray, " residuals"]:
    """Return the runs' residuals from the parabola, divided by √(1 - leverage), so that their variance is the noise's.

    Runs of leverage 1 are left out: the parabola passes through them whatever their loss is.
    """
    design = _design(points, parabola)
    leverage = np.einsum("ij,ji->i", design, np.linalg.pinv(design))
    relative_variance = 1 - leverage
    residuals = points.loss[parabola.indices] - design @ parabola.coefficients
    standardised = residuals / np.sqrt(np.maximum(relative_variance, 1e-9))
    return standardised[relative_variance > 1e-6]


def _minima_with_noise(
    points: Points, parabola: Parabola, noise: Float[np.ndarray, "draws chosen"]
) -> Float[np.ndarray, " draws"]:
    """Refit the parabola with noise on its losses; return the log N of the minima, within the sizes tried."""
    design = _design(points, parabola)
    q = (design @ parabola.coefficients + noise) @ np.linalg.pinv(design).T
    log_n = np.log(points.parameters[parabola.indices])
    with np.errstate(all="ignore"):
        lowest = np.where(q[:, 2] > 0, -q[:, 1] / (2 * q[:, 2]), np.nan)
        return np.clip(lowest, log_n.min(), log_n.max())


def _optima(parabolas: Sequence[Parabola]) -> Float[np.ndarray, "optima 3"]:
    """Return C, N and D of the minima."""
    optima = []
    for parabola in parabolas:
        if parabola.minimum is not None:
            optima.append((parabola.flops, parabola.minimum.parameters, parabola.minimum.tokens))
    return np.array(optima)
