"""L-BFGS on a batch of small problems at once (Nocedal & Wright 2006, algorithms 7.4, 7.5 and 3.1).

A scaling law is fitted from hundreds of starting points, and again to a thousand bootstrap samples. Each of these
problems has two to six unknowns, and all of them have the same objective function. Here every problem is a row of one
array. A library that solves one problem per call spends its time in the interpreter, and `optax.lbfgs` under `jax.vmap`
lets every problem wait for the longest line search.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

Objective: TypeAlias = Callable[
    [Float[np.ndarray, "rows unknowns"], Int[np.ndarray, " rows"]],
    tuple[Float[np.ndarray, " rows"], Float[np.ndarray, "rows unknowns"]],
]
"""Takes points and the row numbers of their problems; returns the values and the gradients."""

HISTORY = 10
"""Curvature pairs that are kept."""
MAX_HALVINGS = 30
"""Step lengths that a line search tries."""
SUFFICIENT_DECREASE = 1e-4
"""Share of the decrease that the slope promises (Nocedal & Wright 2006, eq. 3.4)."""
MIN_RELATIVE_DECREASE = 1e-11
"""An iteration that lowers the value by less counts as stalled."""
MAX_STALLED = 3
"""Stalled iterations, one after the other, that end a row."""
MIN_CURVATURE = 1e-14
"""A pair whose step and gradient change have a smaller product is not used."""


@dataclass(frozen=True)
class _Evaluation:
    """Points with their values and gradients."""

    points: Float[np.ndarray, "rows unknowns"]
    values: Float[np.ndarray, " rows"]
    gradients: Float[np.ndarray, "rows unknowns"]

    def select(self, rows: Int[np.ndarray, " selected"]) -> "_Evaluation":
        return _Evaluation(self.points[rows], self.values[rows], self.gradients[rows])

    def update(self, rows: Int[np.ndarray, " selected"], source: "_Evaluation") -> None:
        """Overwrite some rows in place."""
        self.points[rows] = source.points
        self.values[rows] = source.values
        self.gradients[rows] = source.gradients


@dataclass(frozen=True)
class _CurvaturePair:
    """A step of the search and the change of the gradient along it.

    `inverse_product` is 1 / (step · gradient_change), or 0 where the pair is not used.
    """

    step: Float[np.ndarray, "rows unknowns"]
    gradient_change: Float[np.ndarray, "rows unknowns"]
    inverse_product: Float[np.ndarray, " rows"]

    @classmethod
    def between(cls, before: _Evaluation, after: _Evaluation) -> "_CurvaturePair":
        step = after.points - before.points
        gradient_change = after.gradients - before.gradients
        product = (step * gradient_change).sum(-1)
        is_usable = product > MIN_CURVATURE
        inverse_product = np.where(is_usable, 1 / np.where(is_usable, product, 1), 0)
        return cls(step, gradient_change, inverse_product)

    def select(self, rows: Bool[np.ndarray, " rows"]) -> "_CurvaturePair":
        return _CurvaturePair(self.step[rows], self.gradient_change[rows], self.inverse_product[rows])


def minimise(
    objective: Objective, start: Float[np.ndarray, "rows unknowns"], max_iterations: int = 1000
) -> tuple[Float[np.ndarray, "rows unknowns"], Float[np.ndarray, " rows"]]:
    """Minimise every row's problem by L-BFGS with a backtracking line search.

    A row that has converged is taken out of the batch, so that the others do not wait for it.

    Args:
        objective: see `Objective`.
        start: one starting point per row.
        max_iterations: upper limit for the rows that converge slowest.

    Returns:
        The last point of every row, and its value.
    """
    points = start.astype(float).copy()
    active_rows = np.arange(len(points))
    values, gradients = objective(points, active_rows)
    latest = _Evaluation(points, values, gradients)
    stalled_iterations = np.zeros(len(points), int)
    pairs: deque[_CurvaturePair] = deque(maxlen=HISTORY)
    for _ in range(max_iterations):
        before = latest.select(active_rows)
        after = _line_search(objective, active_rows, before, pairs)
        pairs.append(_CurvaturePair.between(before, after))
        has_improved = before.values - after.values > MIN_RELATIVE_DECREASE * np.abs(after.values)
        stalled_iterations[active_rows] = np.where(has_improved, 0, stalled_iterations[active_rows] + 1)
        latest.update(active_rows, after)
        is_active = stalled_iterations[active_rows] < MAX_STALLED
        if not is_active.any():
            break
        active_rows = active_rows[is_active]
        pairs = deque([pair.select(is_active) for pair in pairs], HISTORY)
    return latest.points, latest.values


def _line_search(
    objective: Objective, rows: Int[np.ndarray, " rows"], before: _Evaluation, pairs: deque[_CurvaturePair]
) -> _Evaluation:
    """Halve the step length until the value decreases enough; a row where no length does keeps its point."""
    direction = _search_direction(before.gradients, pairs)
    slope = (direction * before.gradients).sum(-1)
    is_uphill = slope >= 0
    direction[is_uphill] = -before.gradients[is_uphill]
    slope[is_uphill] = -np.square(before.gradients[is_uphill]).sum(-1)

    step_length = np.ones(len(rows))
    if not pairs:
        step_length = 1 / np.maximum(np.abs(before.gradients).sum(-1), 1)
    after = before.select(np.arange(len(rows)))
    searching = np.arange(len(rows))
    for _ in range(MAX_HALVINGS):
        points = before.points[searching] + step_length[searching, None] * direction[searching]
        values, gradients = objective(points, rows[searching])
        limit = before.values[searching] + SUFFICIENT_DECREASE * step_length[searching] * slope[searching]
        is_accepted = values <= limit
        accepted = _Evaluation(points[is_accepted], values[is_accepted], gradients[is_accepted])
        after.update(searching[is_accepted], accepted)
        searching = searching[~is_accepted]
        if len(searching) == 0:
            break
        step_length[searching] /= 2
    return after


def _search_direction(
    gradients: Float[np.ndarray, "rows unknowns"], pairs: deque[_CurvaturePair]
) -> Float[np.ndarray, "rows unknowns"]:
    """Multiply the negative gradients by the inverse Hessian that the pairs approximate, by the two-loop recursion."""
    direction = -gradients
    coefficients = []
    for pair in reversed(pairs):
        coefficient = pair.inverse_product * (pair.step * direction).sum(-1)
        direction = direction - coefficient[:, None] * pair.gradient_change
        coefficients.append(coefficient)
    if pairs:
        newest = pairs[-1]
        scale = newest.inverse_product * np.square(newest.gradient_change).sum(-1)
        direction = direction / np.where(scale > 0, scale, 1)[:, None]
    for pair, coefficient in zip(pairs, reversed(coefficients), strict=True):
        correction = pair.inverse_product * (pair.gradient_change * direction).sum(-1)
        direction = direction + (coefficient - correction)[:, None] * pair.step
    return direction
