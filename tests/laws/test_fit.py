"""Fits against published fits, published constants, and known laws with noise."""

import numpy as np
import pytest

from t5x_lite.laws.estimates import percentile_interval
from t5x_lite.laws.fit import Fit, NotFitted, fit_law
from t5x_lite.laws.isoflop import fit_parabolas, frontier_from_parabolas
from t5x_lite.laws.parametric import Chinchilla, Clark, Kaplan, Power
from t5x_lite.laws.points import Points
from tests.laws.known_law import BESIROGLU, BESIROGLU_ERRORS, BESIROGLU_NOTEBOOK, build_points, isoflop_runs


def fitted_constants(fit: Fit) -> np.ndarray:
    return fit.law.constants(fit.theta[None])[0]


def test_the_fit_of_chinchillas_points_reaches_the_published_minimum(chinchilla_fit: Fit) -> None:
    assert chinchilla_fit.objective <= 1.01827e-3 * (1 + 1e-5)  # the last digit of the published figure
    constants = chinchilla_fit.constants()
    for name in ("E", "α", "β"):
        assert constants[name].value == pytest.approx(BESIROGLU_NOTEBOOK[name], rel=0.01)
        assert constants[name].value == pytest.approx(BESIROGLU[name], rel=0.01)
    for name in ("A", "B"):
        assert constants[name].value == pytest.approx(BESIROGLU_NOTEBOOK[name], rel=0.05)
        assert constants[name].value == pytest.approx(BESIROGLU[name], rel=0.05)


@pytest.mark.slow  # 4,000 fits, as published
def test_bootstrap_errors_are_the_published_ones(chinchilla_points: Points) -> None:
    constants = fit_law(Chinchilla(), chinchilla_points, 4000).constants()
    ratios = {name: constants[name].standard_error / error for name, error in BESIROGLU_ERRORS.items()}
    assert ratios == pytest.approx(dict.fromkeys(BESIROGLU_ERRORS, 1), abs=0.25)


def test_fits_recover_the_published_constants_of_kaplans_laws() -> None:
    """Kaplan et al. 2020, table 2 and 3."""
    size_grid, data_grid = np.meshgrid(np.geomspace(1e6, 1e9, 6), np.geomspace(2e7, 2e10, 6))
    parameters = size_grid.ravel()
    tokens = data_grid.ravel()
    loss = ((6.4e13 / parameters) ** (0.076 / 0.103) + 1.8e13 / tokens) ** 0.103
    fit = fit_law(Kaplan(), build_points(parameters, tokens, loss), 0)
    assert fitted_constants(fit) == pytest.approx([6.4e13, 1.8e13, 0.076, 0.103], rel=1e-3)
    sizes = np.geomspace(1e6, 1e9, 8)
    power_fit = fit_law(Power("N"), build_points(sizes, sizes, (8.8e13 / sizes) ** 0.076), 0)
    assert fitted_constants(power_fit) == pytest.approx([8.8e13, 0.076], rel=1e-3)


@pytest.mark.slow
def test_a_fit_recovers_the_published_constants_of_the_law_of_experts() -> None:
    """Clark et al. 2022, table 3, S-BASE."""
    a = -0.082
    b = -0.108
    c = 0.009
    d = 1.104
    e_start = 1.847
    e_max = 314.478
    expert_counts = np.array([1, 2, 4, 8, 32, 64, 128, 256, 512], float)
    size_grid, expert_grid = np.meshgrid(np.geomspace(1.5e7, 1.3e9, 5), expert_counts)
    parameters = size_grid.ravel()
    experts = expert_grid.ravel()
    saturated = 1 / (1 / (experts - 1 + 1 / (1 / e_start - 1 / e_max)) + 1 / e_max)
    log_n = np.log10(parameters)
    log_e = np.log10(saturated)
    loss = 10 ** (a * log_n + b * log_e + c * log_n * log_e + d)
    dense = build_points(parameters, parameters, loss)
    points = Points(parameters, parameters, dense.flops, loss, dense.budget, experts, dense.names)
    fit = fit_law(Clark(), points, 0)
    assert fitted_constants(fit) == pytest.approx((a, b, c, d, e_start, e_max), rel=0.02)


class ChinchillaFromOneGuess(Chinchilla):
    """The law with one initial guess near the minimum. That the whole grid finds it is tested on real points."""

    def initial_guesses(self) -> np.ndarray:
        return np.array([[6.0, 7.5, 0.5, 0.35, 0.35]])


@pytest.mark.slow  # 15,000 fits
def test_approaches_2_and_3_agree_and_their_intervals_contain_the_true_exponents_in_95_of_100_draws() -> None:
    true_values = {
        "α": BESIROGLU["α"],
        "β": BESIROGLU["β"],
        "a by parabolas": BESIROGLU["β"] / (BESIROGLU["α"] + BESIROGLU["β"]),
        "a by the law": BESIROGLU["β"] / (BESIROGLU["α"] + BESIROGLU["β"]),
    }
    successes = dict.fromkeys([*true_values, "agree"], 0)
    for seed in range(100):
        points = isoflop_runs(seed)
        fit = fit_law(ChinchillaFromOneGuess(), points, 150, seed)
        frontier = frontier_from_parabolas(points, fit_parabolas(points), 150, seed)
        assert not isinstance(frontier, NotFitted)
        constants = fit.constants()
        samples = fit.law.constants(fit.bootstrap)
        a_by_law = samples[:, 4] / (samples[:, 3] + samples[:, 4])
        a_by_parabolas = frontier.bootstrap[:, 1]
        intervals = {
            "α": constants["α"].interval,
            "β": constants["β"].interval,
            "a by parabolas": percentile_interval(a_by_parabolas, frontier.num_points, frontier.num_unknowns),
            "a by the law": percentile_interval(a_by_law, len(points), 5),
        }
        for name, (low, high) in intervals.items():
            successes[name] += low <= true_values[name] <= high
        low_2, high_2 = intervals["a by parabolas"]
        low_3, high_3 = intervals["a by the law"]
        successes["agree"] += max(low_2, low_3) <= min(high_2, high_3)
    assert all(count >= 95 for count in successes.values()), successes
