"""Everything that is fitted to the points of a sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from t5x_lite.laws.compute_optimal import Frontier, TrainingCost, frontier_from_law
from t5x_lite.laws.fit import Fit, NotFitted, fit_law
from t5x_lite.laws.isoflop import Parabola, fit_parabolas, frontier_from_parabolas
from t5x_lite.laws.parametric import Chinchilla, Clark, Kaplan, Power
from t5x_lite.laws.points import Points, check_points
from t5x_lite.laws.training_curves import frontier_from_curves
from t5x_lite.sweep.points import SweepPoints

DRAWS = 1000
"""Samples of each bootstrap, unless others are asked for."""


@dataclass(frozen=True)
class Study:
    """The points of a sweep and what was fitted to them.

    Attributes:
        sweep_points: the points, without those that were dropped.
        parametric: L(N, D) of Hoffmann et al. 2022, fitted to the dense runs.
        other_laws: the other laws, by name.
        parabolas: the IsoFLOP parabolas.
        frontiers: the compute-optimal frontier by each of the three approaches, by name.
        law_frontier: that of `parametric`, which is also one of `frontiers`.
        cost: C by N and D.
    """

    sweep_points: SweepPoints
    parametric: Fit
    other_laws: Mapping[str, Fit | NotFitted]
    parabolas: Sequence[Parabola]
    frontiers: Mapping[str, Frontier | NotFitted]
    law_frontier: Frontier
    cost: TrainingCost

    def lowest_loss(self, flops: float) -> tuple[Float[np.ndarray, " 1"], Float[np.ndarray, "draws 1"]]:
        """Return the lowest loss for a budget by L(N, D), and that by every bootstrap sample."""
        sizes, size_samples = self.law_frontier.predict(flops)
        log_sizes = np.log(np.vstack([sizes, size_samples]))
        # Every sample of theta is evaluated at its own optimum: inputs of shape [2, samples, 1].
        inputs = log_sizes.T[..., None]
        log_loss, _ = self.parametric.law.log_loss(self.parametric.all_theta(), inputs)
        loss = np.exp(log_loss)
        return loss[0], loss[1:]


def run_study(sweep_points: SweepPoints, draws: int = DRAWS, drop_highest: int = 0) -> Study:
    """Fit every law and find the frontier in every way that the points allow.

    Args:
        sweep_points: the points.
        draws: samples of each bootstrap.
        drop_highest: number of points with the highest loss that are left out.

    Raises:
        UserError: there are too few points, or their sizes or token counts are too few.
    """
    if drop_highest > 0:
        sweep_points = _drop_highest(sweep_points, drop_highest)
    points = sweep_points.points
    check_points(points)
    fewest_experts = points.experts.min()
    dense = points.select(points.experts == fewest_experts)
    check_points(dense)
    dense_curves = [curve for curve in sweep_points.curves if curve.experts == fewest_experts]

    other_laws: dict[str, Fit | NotFitted] = {}
    for letter in "NDC":
        power = Power(letter)
        other_laws[power.name] = _fit_power(power, points, draws)
    other_laws[Kaplan.name] = fit_law(Kaplan(), dense, draws)
    num_expert_counts = len(np.unique(points.experts))
    if num_expert_counts >= 3 and len(points) >= 8:
        other_laws[Clark.name] = fit_law(Clark(), points, draws)
    elif num_expert_counts > 1:
        other_laws[Clark.name] = NotFitted("needs 3 numbers of experts and 8 points")

    parabolas = fit_parabolas(dense)
    cost = TrainingCost.fit(dense)
    parametric = fit_law(Chinchilla(), dense, draws)
    law_frontier = frontier_from_law(parametric, cost)
    frontiers = {
        "training curves": frontier_from_curves(dense_curves, draws),
        "IsoFLOP parabolas": frontier_from_parabolas(dense, parabolas, draws),
        parametric.law.name: law_frontier,
    }
    return Study(sweep_points, parametric, other_laws, parabolas, frontiers, law_frontier, cost)


def _drop_highest(sweep_points: SweepPoints, count: int) -> SweepPoints:
    points = sweep_points.points
    by_loss = np.argsort(points.loss)
    left_out = dict(sweep_points.left_out)
    for index in by_loss[-count:]:
        left_out[points.names[index]] = f"loss {points.loss[index]:.4g} is among the {count} highest"
    remaining = points.select(np.sort(by_loss[:-count]))
    curves = [curve for curve in sweep_points.curves if curve.name not in left_out]
    return SweepPoints(remaining, curves, left_out)


def _fit_power(power: Power, points: Points, draws: int) -> Fit | NotFitted:
    best = points.select(power.pareto_frontier(points))
    if len(best) < 3:
        return NotFitted(f"needs 3 runs that no smaller run beats, found {len(best)}")
    return fit_law(power, best, draws)
