"""N and D that are best for C: from minima over training curves, from IsoFLOP parabolas, and from a fitted L(N, D).

The three approaches of Hoffmann et al. 2022, §3; all end in straight lines of log N and log D over log C.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from t5x_lite.laws.law import Cost, Fit, Points, optimum

WINDOW = 0.2
"""Width in log C of the points that are taken for one budget where no budgets are given: 10 % up and down."""
WINDOW_SIZES = 6
"""Sizes that make such a window a budget."""
GRID = 1500
"""Values of C, evenly spaced in logarithm, at which training curves are compared (Hoffmann et al. 2022, §3.1)."""


@dataclass(frozen=True)
class Frontier:
    """Lines log N = n0 + a·log C and log D = d0 + b·log C: `lines` is (n0, a, d0, b), `drawn` `[draws, 4]`.

    `seen` holds the (C, N, D) that the lines go through; `count` and `unknowns` those of the underlying fits.
    """

    lines: np.ndarray
    drawn: np.ndarray = field(repr=False)
    seen: np.ndarray = field(repr=False)
    count: int
    unknowns: int

    def at(self, flops: float) -> tuple[np.ndarray, np.ndarray]:
        """N and D for a budget `[2]`, and by every draw `[draws, 2]`."""
        every = np.vstack([self.lines, self.drawn])
        value = np.exp(every[:, [0, 2]] + every[:, [1, 3]] * np.log(flops))
        return value[0], value[1:]


@dataclass(frozen=True)
class Curve:
    """The loss of one run as it trains: C `[n]`, ascending, and L `[n]`, with the run's N and its D for each C."""

    parameters: float
    flops: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray


@dataclass(frozen=True)
class Parabola:
    """L = q0 + q1·log N + q2·(log N)² through the runs of one budget; `minimum` is (N, D, L).

    `wrong` says why there is none to use.
    """

    flops: float
    chosen: np.ndarray
    coefficients: np.ndarray
    minimum: tuple[float, float, float] | None
    wrong: str = ""


def groups(points: Points) -> list[np.ndarray]:
    """Numbers of the points of each budget, least first: as given, or the fullest windows of C one after another."""
    if points.budget.any():
        return [np.flatnonzero(points.budget == budget) for budget in np.unique(points.budget[points.budget > 0])]
    left, found = np.argsort(points.flops), []
    while len(left):
        c = np.log(points.flops[left])
        ends = np.searchsorted(c, c + WINDOW, "right")
        first = int(np.argmax(ends - np.arange(len(c))))
        window = left[first : ends[first]]
        if len(np.unique(points.parameters[window])) < WINDOW_SIZES:
            break
        found.append(window)
        left = np.concatenate([left[:first], left[ends[first] :]])
    return sorted(found, key=lambda window: float(np.mean(points.flops[window])))


def parabolas(points: Points) -> list[Parabola]:
    """One a budget."""
    return [_parabola(points, chosen) for chosen in groups(points)]


def _parabola(points: Points, chosen: np.ndarray) -> Parabola:
    n, c = np.log(points.parameters[chosen]), float(np.exp(np.log(points.flops[chosen]).mean()))
    if len(np.unique(np.round(n, 3))) < 3:
        return Parabola(c, chosen, np.full(3, np.nan), None, "fewer than 3 sizes")
    q = np.polynomial.polynomial.polyfit(n, points.loss[chosen], 2)
    lowest = -q[1] / (2 * q[2])
    if q[2] <= 0:
        return Parabola(c, chosen, q, None, "not convex")
    if not n.min() < lowest < n.max():
        return Parabola(c, chosen, q, None, "minimum outside the sizes tried")
    d = np.polyfit(n, np.log(points.tokens[chosen]), 1)
    best = float(np.exp(lowest)), float(np.exp(np.polyval(d, lowest))), float(q[0] - q[1] ** 2 / 4 / q[2])
    return Parabola(c, chosen, q, best)


def by_parabolas(points: Points, found: Sequence[Parabola], draws: int, seed: int = 0) -> Frontier | str:
    """Approach 2, or why it cannot be had. A draw gives every point another's residual from its parabola."""
    good = [one for one in found if one.minimum]
    if len(good) < 2:
        reasons = "; ".join(f"C = {one.flops:.3g}: {one.wrong}" for one in found if one.wrong)
        return f"needs 2 budgets whose parabola has a minimum, found {len(good)}" + (f" ({reasons})" if reasons else "")
    rng = np.random.default_rng(seed)
    sizes = [np.log(points.parameters[one.chosen]) for one in good]
    designs = [np.vander(n, 3, increasing=True) for n in sizes]
    solvers = [np.linalg.pinv(design) for design in designs]
    rest = []
    for one, design, solver in zip(good, designs, solvers, strict=True):
        free = 1 - np.einsum("ij,ji->i", design, solver)
        residual = points.loss[one.chosen] - design @ one.coefficients
        rest.append((residual / np.sqrt(np.maximum(free, 1e-9)))[free > 1e-6])
    pool = np.concatenate(rest)
    lowest, tokens = [], []
    for one, n, design, solver in zip(good, sizes, designs, solvers, strict=True):
        noise = rng.choice(pool if len(pool) else [np.nan], (draws, len(n)))
        q = (design @ one.coefficients + noise) @ solver.T
        with np.errstate(all="ignore"):
            lowest.append(np.clip(np.where(q[:, 2] > 0, -q[:, 1] / (2 * q[:, 2]), np.nan), n.min(), n.max()))
        d = np.polyfit(n, np.log(points.tokens[one.chosen]), 1)
        tokens.append(np.polyval(d, lowest[-1]))
    c = np.log([one.flops for one in good])
    seen = np.array([(one.flops, *one.minimum[:2]) for one in good if one.minimum])
    drawn = _lines(c, np.stack(lowest, -1), np.stack(tokens, -1))
    return Frontier(_through(seen), drawn, seen, sum(map(len, sizes)), 3 * len(good))


def by_curves(curves: Sequence[Curve], draws: int, seed: int = 0) -> Frontier | str:
    """Approach 1, or why it cannot be had: at each C the curve of the least loss; a draw takes other runs.

    Where the best is of the smallest or of the largest size that has got so far, a better one may lie beyond: left out.
    """
    sizes = len({curve.parameters for curve in curves})
    if sizes < 3:
        return f"needs training curves of 3 sizes, found {sizes}"
    lowest, highest = min(one.flops[0] for one in curves), max(one.flops[-1] for one in curves)
    c = np.linspace(np.log(lowest), np.log(highest), GRID)
    loss = np.stack([np.interp(c, np.log(one.flops), one.loss, np.nan, np.nan) for one in curves])
    tokens = np.stack([np.interp(c, np.log(one.flops), np.log(one.tokens)) for one in curves])
    n = np.log([one.parameters for one in curves])

    def lines(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        own = np.where(np.isnan(loss[chosen]), np.inf, loss[chosen])
        there, best = np.isfinite(own), n[chosen][own.argmin(0)]
        least = np.where(there, n[chosen][:, None], np.inf).min(0)
        most = np.where(there, n[chosen][:, None], -np.inf).max(0)
        inside = (best > least) & (best < most)
        if len(np.unique(best[inside])) < 2:
            return None
        d = tokens[chosen][own.argmin(0), np.arange(GRID)]
        seen = np.exp(np.stack([c, best, d], -1)[inside])
        return _through(seen), seen

    whole = lines(np.arange(len(curves)))
    if whole is None:
        return "needs 2 sizes between the smallest and the largest that are best at some C"
    rng = np.random.default_rng(seed)
    every = [lines(rng.integers(0, len(curves), len(curves))) for _ in range(min(draws, 200))]
    drawn = [one[0] for one in every if one is not None]
    if 2 * len(drawn) < len(every):  # too few sizes to do without any: no interval is better than a wrong one
        drawn = [np.full(4, np.nan)]
    return Frontier(whole[0], np.array(drawn).reshape(-1, 4), whole[1], len(curves), 1)


def by_law(found: Fit, cost: Cost) -> Frontier:
    """Approach 3: where L = E + A/N^α + B/D^β is least among the runs of a cost."""
    every = found.law.constants(np.vstack([found.theta, found.drawn]))
    constants = dict(zip(found.law.symbols, every.T, strict=True))
    grown, n = 1 + cost.gamma, np.log(optimum(constants, 1.0, cost))
    slope = constants["β"] / (constants["α"] + grown * constants["β"])
    lines = np.stack([n, slope, -np.log(cost.kappa) - grown * n, 1 - grown * slope], -1)
    return Frontier(lines[0], lines[1:], np.zeros((0, 3)), len(found.points.loss), len(found.theta))


def _lines(c: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """The lines (see `Frontier`) `[rows, 4]` of log N and log D `[rows, n]` over log C `[n]`."""
    solver = np.linalg.pinv(np.vander(c, 2, increasing=True)).T
    return np.concatenate([n @ solver, d @ solver], -1)


def _through(seen: np.ndarray) -> np.ndarray:
    c, n, d = np.log(seen).T
    return _lines(c, n[None], d[None])[0]
