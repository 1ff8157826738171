"""Many small problems minimised side by side: every start of a grid and every draw of a bootstrap is one row."""

from collections import deque
from collections.abc import Callable, Sequence

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
    pairs: deque[tuple[np.ndarray, ...]] = deque(maxlen=MEMORY)
    idle = np.zeros(len(x), int)
    for _ in range(iterations):
        way = _direction(g[live], pairs)
        slope = (way * g[live]).sum(-1)
        uphill = slope >= 0
        way[uphill], slope[uphill] = -g[live][uphill], -np.square(g[live][uphill]).sum(-1)
        length = np.ones(len(live)) if pairs else 1 / np.maximum(np.abs(g[live]).sum(-1), 1)
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
        step, change = reached - x[live], gradient - g[live]
        product = (step * change).sum(-1)
        pairs.append((step, change, np.where(product > 1e-14, 1 / np.where(product > 1e-14, product, 1), 0)))
        idle[live] = np.where(f[live] - value > 1e-11 * np.abs(value), 0, idle[live] + 1)
        x[live], f[live], g[live] = reached, value, gradient
        going = idle[live] < 3
        if not going.any():
            break
        live, pairs = live[going], deque((tuple(part[going] for part in pair) for pair in pairs), MEMORY)
    return x, f


def _direction(gradient: np.ndarray, pairs: Sequence[tuple[np.ndarray, ...]]) -> np.ndarray:
    """The two loops over the newest pairs of step and change of the gradient, both `[rows, parameters]`.

    The third of a pair is 1 / step · change `[rows]`; 0 leaves the pair out.
    """
    way, shares = -gradient, []
    for step, change, inverse in reversed(pairs):
        shares.append(inverse * (step * way).sum(-1))
        way = way - shares[-1][:, None] * change
    if pairs:
        _, change, inverse = pairs[-1]
        curved = inverse * np.square(change).sum(-1)
        way = way / np.where(curved > 0, curved, 1)[:, None]
    for (step, change, inverse), share in zip(pairs, reversed(shares), strict=True):
        way = way + (share - inverse * (change * way).sum(-1))[:, None] * step
    return way
