"""The compute-optimal frontier: the best N and D for a FLOP budget C, as straight lines in logarithms.

Hoffmann et al. 2022, §3, find it in three ways. This file holds the third, from a fitted L(N, D), and what all three
share; `training_curves` holds the first and `isoflop` the second.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from t5x_lite.laws.fit import Fit
from t5x_lite.laws.points import Points


@dataclass(frozen=True)
class TrainingCost:
    """C = κ·N^(1+γ)·D. With C = 6·N·D (Kaplan et al. 2020, §2.1), κ is 6 and γ is 0.

    Where the FLOPs of the real model are counted, attention and the output matrix make a token's cost grow a little
    faster or slower than N.
    """

    kappa: float = 6.0
    gamma: float = 0.0

    @classmethod
    def fit(cls, points: Points) -> "TrainingCost":
        """Fit κ and γ to the points by least squares in logarithms."""
        log_cost = np.log(points.flops / points.parameters / points.tokens)
        log_n = np.log(points.parameters)
        gamma = 0.0
        if np.ptp(log_n) > 0 and np.ptp(log_cost) > 1e-6:
            gamma = float(np.polyfit(log_n, log_cost, 1)[0])
        return cls(float(np.exp(np.mean(log_cost - gamma * log_n))), gamma)


@dataclass(frozen=True)
class Frontier:
    """The lines log N = n0 + a·log C and log D = d0 + b·log C.

    Attributes:
        lines: n0, a, d0, b.
        bootstrap: the same, for every bootstrap sample.
        optima: C, N and D of the optima that the lines are fitted to; none for a frontier that follows from a law.
        num_points: points of the underlying fit.
        num_unknowns: unknowns of the underlying fit.
    """

    lines: Float[np.ndarray, " 4"]
    bootstrap: Float[np.ndarray, "draws 4"] = field(repr=False)
    optima: Float[np.ndarray, "optima 3"] = field(repr=False)
    num_points: int
    num_unknowns: int

    def predict(self, flops: float) -> tuple[Float[np.ndarray, " 2"], Float[np.ndarray, "draws 2"]]:
        """Return N and D for a budget, and those by every bootstrap sample."""
        all_lines = np.vstack([self.lines, self.bootstrap])
        intercepts = all_lines[:, [0, 2]]
        exponents = all_lines[:, [1, 3]]
        sizes = np.exp(intercepts + exponents * np.log(flops))
        return sizes[0], sizes[1:]


def optimal_parameters(
    constants: Mapping[str, Float[np.ndarray, " rows"]], flops: float, cost: TrainingCost
) -> Float[np.ndarray, " rows"]:
    """Return the N whose L(N, D) is lowest among the runs that cost a number of FLOPs.

    This is Hoffmann et al. 2022, eq. 4, for the cost C = κ·N^(1+γ)·D.
    """
    alpha = constants["α"]
    beta = constants["β"]
    cost_exponent = 1 + cost.gamma
    with np.errstate(all="ignore"):
        ratio = alpha * constants["A"] / (cost_exponent * beta * constants["B"])
        base = ratio * (flops / cost.kappa) ** beta
        return base ** (1 / (alpha + cost_exponent * beta))


def frontier_from_law(fit: Fit, cost: TrainingCost) -> Frontier:
    """Approach 3: minimise L = E + A/N^α + B/D^β among the runs of each cost."""
    all_constants = fit.law.constants(fit.all_theta())
    constants = dict(zip(fit.law.symbols, all_constants.T, strict=True))
    cost_exponent = 1 + cost.gamma
    log_n = np.log(optimal_parameters(constants, 1.0, cost))
    slope = constants["β"] / (constants["α"] + cost_exponent * constants["β"])
    log_d = -np.log(cost.kappa) - cost_exponent * log_n
    lines = np.stack([log_n, slope, log_d, 1 - cost_exponent * slope], -1)
    return Frontier(lines[0], lines[1:], np.zeros((0, 3)), len(fit.points), len(fit.theta))


def fit_lines(
    log_c: Float[np.ndarray, " optima"],
    log_n: Float[np.ndarray, "rows optima"],
    log_d: Float[np.ndarray, "rows optima"],
) -> Float[np.ndarray, "rows 4"]:
    """Fit the lines of a `Frontier` to every row of optima, by least squares."""
    solver = np.linalg.pinv(np.vander(log_c, 2, increasing=True)).T
    return np.concatenate([log_n @ solver, log_d @ solver], -1)


def fit_line_through(optima: Float[np.ndarray, "optima 3"]) -> Float[np.ndarray, " 4"]:
    """Fit the lines of a `Frontier` to its optima."""
    log_c, log_n, log_d = np.log(optima).T
    return fit_lines(log_c, log_n[None], log_d[None])[0]
