"""The compute-optimal frontier by each of the three approaches."""

import numpy as np
import pytest

from t5x_lite.laws.compute_optimal import TrainingCost, optimal_parameters
from t5x_lite.laws.fit import NotFitted
from t5x_lite.laws.isoflop import fit_parabolas, frontier_from_parabolas, group_by_budget
from t5x_lite.laws.points import Points
from t5x_lite.laws.training_curves import TrainingCurve, frontier_from_curves
from tests.laws.known_law import BESIROGLU, besiroglu_constants, besiroglu_loss, build_points, isoflop_runs


def test_approach_2_finds_the_published_exponents_of_chinchillas_points(chinchilla_points: Points) -> None:
    """Hoffmann et al. 2022, table 2: a = 0.49 (0.462, 0.534), b = 0.51 (0.483, 0.529), to the precision of pixels."""
    frontier = frontier_from_parabolas(chinchilla_points, fit_parabolas(chinchilla_points), 500)
    assert not isinstance(frontier, NotFitted)
    assert frontier.lines[[1, 3]] == pytest.approx([0.49, 0.51], abs=0.02)


def test_the_optimum_accounts_for_a_cost_per_token_that_is_not_proportional_to_n() -> None:
    """Compare it with a search over all sizes, where a token of size N costs 20·N^0.9."""
    size_grid, data_grid = np.meshgrid(np.geomspace(1e5, 1e8, 5), np.geomspace(1e7, 1e9, 4))
    parameters = size_grid.ravel()
    tokens = data_grid.ravel()
    points = build_points(parameters, tokens, parameters)
    flops = 20 * parameters**0.9 * tokens
    cost = TrainingCost.fit(Points(parameters, tokens, flops, parameters, points.budget, points.experts, points.names))
    assert (cost.kappa, cost.gamma) == pytest.approx((20, -0.1))
    sizes = np.geomspace(1e6, 1e12, 200001)
    affordable_tokens = 1e20 / cost.kappa / sizes ** (1 + cost.gamma)
    loss = np.asarray(besiroglu_loss(sizes, affordable_tokens))
    optimum = optimal_parameters(besiroglu_constants(), 1e20, cost)
    assert optimum[0] == pytest.approx(sizes[loss.argmin()], rel=1e-3)


def test_approach_1_finds_the_exponents_of_the_law_that_the_curves_follow() -> None:
    """With many sizes, the best of them at every C is the optimum."""
    curves = []
    for parameters in np.geomspace(1e7, 1e11, 80):
        tokens = np.geomspace(1e8, 1e13, 300)
        loss = np.asarray(besiroglu_loss(parameters, tokens))
        curves.append(TrainingCurve(str(parameters), parameters, 6 * parameters * tokens, tokens, loss))
    frontier = frontier_from_curves(curves, 20)
    assert not isinstance(frontier, NotFitted)
    exponent = BESIROGLU["β"] / (BESIROGLU["α"] + BESIROGLU["β"])
    assert frontier.lines[[1, 3]] == pytest.approx([exponent, 1 - exponent], abs=0.01)
    assert len(frontier.bootstrap) == 20
    two_curves_of_one_size = [curves[0], curves[0]]
    assert frontier_from_curves(two_curves_of_one_size, 5) == NotFitted("needs training curves of 3 sizes, found 1")


def test_repeats_of_two_sizes_do_not_hide_a_budget() -> None:
    """Ten runs of two sizes at 10^18 FLOPs, and six of six sizes at 10^19."""
    parameters = np.array([1e7, 2e7] * 5 + [1e7, 2e7, 3e7, 4e7, 5e7, 6e7])
    flops = np.array([1e18] * 10 + [1e19] * 6)
    nothing = np.zeros(16)
    names = tuple(str(number) for number in range(16))
    points = Points(parameters, flops / 6 / parameters, flops, np.ones(16), nothing, nothing, names)
    assert [budget.tolist() for budget in group_by_budget(points)] == [[10, 11, 12, 13, 14, 15]]


def test_a_parabola_without_a_minimum_among_the_sizes_is_left_out_with_a_reason() -> None:
    points = isoflop_runs(0, noise=0)
    large = points.select(points.parameters > 1.1 * np.median(points.parameters))
    parabolas = fit_parabolas(large)
    problems = {parabola.problem for parabola in parabolas}
    assert problems & {"fewer than 3 sizes", "minimum outside the sizes tried"}
    one_budget = large.select(large.budget == large.budget[0])
    frontier = frontier_from_parabolas(one_budget, parabolas[:1], 10)
    assert isinstance(frontier, NotFitted)
    assert "needs 2 budgets" in frontier.reason
