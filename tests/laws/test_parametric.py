"""The derivatives of the laws, and the runs that a power law is fitted to."""

import numpy as np
import pytest

from t5x_lite.laws.parametric import Chinchilla, Clark, Kaplan, Law, Power
from tests.laws.known_law import build_points


@pytest.mark.parametrize("law", [Chinchilla(), Kaplan(), Power("N"), Power("D"), Power("C"), Clark()])
def test_derivatives_equal_finite_differences(law: Law) -> None:
    inputs = np.log(np.array([[1e8, 3e9], [2e9, 1e11], [1e18, 2e21], [1, 64]]))
    guesses = law.initial_guesses()
    theta = guesses[len(guesses) // 2][None] * 0.7 + 0.2
    _, slopes = law.log_loss(theta, inputs)
    for unknown in range(theta.shape[1]):
        step = np.zeros_like(theta)
        step[0, unknown] = 1e-6
        above, _ = law.log_loss(theta + step, inputs)
        below, _ = law.log_loss(theta - step, inputs)
        np.testing.assert_allclose(slopes[unknown], (above - below) / 2e-6, rtol=1e-4, atol=1e-7)


def test_the_pareto_frontier_has_the_runs_that_no_cheaper_run_beats() -> None:
    sizes = np.geomspace(1e6, 1e9, 8)
    points = build_points(sizes, sizes, np.array([5, 4, 4.5, 3, 3, 2.9, 3.5, 2]))
    on_frontier = Power("C").pareto_frontier(points)
    assert on_frontier.tolist() == [True, True, False, True, False, True, False, True]
