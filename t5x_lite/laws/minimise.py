"""Many small problems minimised side by side: every start of a grid and every draw of a bootstrap is one row."""

from collections.abc import Callable

import numpy as np

Objective = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Of points `[rows, parameters]` and the numbers of these rows: values `[rows]` and gradients."""

MEMORY = 10
HALVINGS = 30


def minimise(objective: Objective, start: np.ndarray, iterations: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """L-BFGS with backtracking (Nocedal & Wright 2006, algorithms 7.4 and 7.5 and 3.1) on every row at once.

    SciPy minimises one problem a call: 4500 starts and 4000 draws would take it minutes.

    Args:
        objective: see `Objective`.
        start: `[rows, parameters]`.
        iterations: at most.

    Returns:
        The points reached, and their values.
    """
    x = start.astype(float).copy()
    live = np.arange(len(x))
    f, g = objective(x, live)
    steps, changes = np.zeros((2, MEMORY, *x.shape))
    inverse = np.zeros((MEMORY, len(x)))  # 1 / step · change; 0 is a pair that is left out
    idle = np.zeros(len(x), int)
    for number in range(iterations):
        way = _direction(g[live], steps[:, live], changes[:, live], inverse[:, live], number)
        slope = (way * g[live]).sum(-1)
        uphill = slope >= 0
        way[uphill], slope[uphill] = -g[live][uphill], -np.square(g[live][uphill]).sum(-1)
        length = np.ones(len(live)) if number else 1 / np.maximum(np.abs(g[live]).sum(-1), 1)
        reached, value, gradient = x[live], f[live], g[live]
        trying = np.arange(len(live))
        for _ in range(HALVINGS):
            to = x[live[trying]] + length[trying, None] * way[trying]
            new, slopes = objective(to, live[trying])
            good = new <= f[live[trying]] + 1e-4 * length[trying] * slope[trying]
            done = trying[good]
            reached[done], value[done], gradient[done] = to[good], new[good], slopes[good]
            trying = trying[~good]
            if not len(trying):
                break
            length[trying] /= 2
        slot = number % MEMORY
        steps[slot, live], changes[slot, live] = reached - x[live], gradient - g[live]
        product = (steps[slot, live] * changes[slot, live]).sum(-1)
        inverse[slot, live] = np.where(product > 1e-14, 1 / np.where(product > 1e-14, product, 1), 0)
        idle[live] = np.where(f[live] - value > 1e-11 * np.abs(value), 0, idle[live] + 1)
        x[live], f[live], g[live] = reached, value, gradient
        live = live[idle[live] < 3]
        if not len(live):
            break
    return x, f


def _direction(
    gradient: np.ndarray, steps: np.ndarray, changes: np.ndarray, inverse: np.ndarray, number: int
) -> np.ndarray:
    """The two loops over the newest pairs of step and change of the gradient, `[memory, rows, parameters]`."""
    way, kept = -gradient, range(max(number - MEMORY, 0), number)
    shares = {}
    for n in reversed(kept):
        slot = n % MEMORY
        shares[slot] = inverse[slot] * (steps[slot] * way).sum(-1)
        way = way - shares[slot][:, None] * changes[slot]
    if number:
        last = (number - 1) % MEMORY
        curved = inverse[last] * np.square(changes[last]).sum(-1)
        way = way / np.where(curved > 0, curved, 1)[:, None]
    for n in kept:
        slot = n % MEMORY
        way = way + (shares[slot] - inverse[slot] * (changes[slot] * way).sum(-1))[:, None] * steps[slot]
    return way
