"""Laws against published fits, published constants, and known laws with noise."""

from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from t5x_lite.errors import UserError
from t5x_lite.laws.law import Chinchilla, Clark, Cost, Fit, Kaplan, Law, Points, Power, fit, interval, optimum
from t5x_lite.laws.minimise import minimise
from t5x_lite.sweep import frontier
from t5x_lite.sweep.fit import report, study
from t5x_lite.sweep.points import SweepPoints, from_csv

PUBLISHED = {"A": 482.01, "B": 2085.43, "E": 1.8172, "α": 0.3478, "β": 0.3658}
"""Besiroglu et al. 2024, table 1."""
NOTEBOOK = {"A": 477.84, "B": 2143.86, "E": 1.8172, "α": 0.34731, "β": 0.36718}
"""The minimum in their notebook."""
ERRORS = {"A": 124.58, "B": 1293.23, "E": 0.03, "α": 0.02, "β": 0.02}
"""Their standard errors, rounded by them to the digits shown."""


def points(n: np.ndarray, d: np.ndarray, loss: np.ndarray, budget: np.ndarray | None = None) -> Points:
    none = np.zeros_like(loss)
    names = tuple(str(k) for k in range(len(loss)))
    return Points(n, d, 6 * n * d, loss, none if budget is None else budget, none + 1, names)


@pytest.fixture(scope="module")
def chinchilla(real_data: Path) -> Points:
    found = from_csv(real_data / "chinchilla" / "svg_extracted_data.csv")
    assert len(found.points.loss) == 245
    return found.points.where(np.argsort(found.points.loss)[:-5])


@pytest.fixture(scope="module")
def fitted(chinchilla: Points) -> Fit:
    return fit(Chinchilla(), chinchilla, 4000)


def test_the_fit_of_chinchillas_points_reaches_the_published_minimum(fitted: Fit) -> None:
    assert fitted.objective <= 1.01827e-3 * (1 + 1e-5)  # the last digit of the published figure
    found = {name: own["value"] for name, own in fitted.constants().items()}
    for name in ("E", "α", "β"):
        assert found[name] == pytest.approx(NOTEBOOK[name], rel=0.01)
        assert found[name] == pytest.approx(PUBLISHED[name], rel=0.01)
    for name in ("A", "B"):
        assert found[name] == pytest.approx(NOTEBOOK[name], rel=0.05)
        assert found[name] == pytest.approx(PUBLISHED[name], rel=0.05)


def test_bootstrap_errors_are_the_published_ones(fitted: Fit) -> None:
    assert len(fitted.drawn) == 4000
    found = {name: own["standard_error"] for name, own in fitted.constants().items()}
    assert {name: found[name] / ERRORS[name] for name in ERRORS} == pytest.approx(dict.fromkeys(ERRORS, 1), abs=0.25)


def test_chinchillas_second_approach_finds_its_published_exponents(chinchilla: Points) -> None:
    """Hoffmann et al. 2022, table 2: a = 0.49 (0.462, 0.534), b = 0.51 (0.483, 0.529); as far as pixels tell."""
    found = frontier.by_parabolas(chinchilla, frontier.parabolas(chinchilla), 500)
    assert not isinstance(found, str)
    assert found.lines[[1, 3]] == pytest.approx([0.49, 0.51], abs=0.02)


def test_the_best_run_for_chinchillas_budget_has_about_its_size(chinchilla: Points) -> None:
    """Hoffmann et al. 2022, table 3: 67 B for 5.76e23 by approach 1, 63 B in approach 2; Besiroglu's law lies near."""
    made = study(SweepPoints(chinchilla, [], {}), draws=50)
    said = report(made, 5.76e23, (70e9, 1.4e12))
    for approach in ("IsoFLOP parabolas", "L(N, D)"):
        assert said["prediction"][approach]["parameters"]["value"] == pytest.approx(67e9, rel=0.15)
    constants = {name: np.array([value]) for name, value in PUBLISHED.items()}
    expected = 1.8172 + 482.01 / 70e9**0.3478 + 2085.43 / 1.4e12**0.3658
    assert said["run"]["loss"]["value"] == pytest.approx(expected, rel=0.005)
    low, high = said["run"]["loss"]["interval"]
    assert low < expected < high
    assert optimum(constants, 5.76e23, Cost())[0] == pytest.approx(67e9, rel=0.15)


@pytest.mark.parametrize("law", [Chinchilla(), Kaplan(), Power("N"), Power("D"), Power("C"), Clark()])
def test_derivatives_of_laws_are_differences(law: Law) -> None:
    x = np.log(np.array([[1e8, 3e9], [2e9, 1e11], [1e18, 2e21], [1, 64]]))
    theta = law.starts()[len(law.starts()) // 2][None] * 0.7 + 0.2
    slopes = law.log_loss(theta, x)[1]
    for k in range(theta.shape[1]):
        step = np.zeros_like(theta)
        step[0, k] = 1e-6
        change = (law.log_loss(theta + step, x)[0] - law.log_loss(theta - step, x)[0]) / 2e-6
        np.testing.assert_allclose(slopes[k], change, rtol=1e-4, atol=1e-7)


def test_many_minima_at_once_are_scipys_one_by_one() -> None:
    """Rosenbrock's valley in three dimensions, from many places."""
    starts = np.random.default_rng(0).uniform(-2, 2, (6, 3))

    def rosenbrock(x: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a, b = x[:, :-1], x[:, 1:]
        g = np.zeros_like(x)
        g[:, :-1] += -400 * a * (b - a**2) - 2 * (1 - a)
        g[:, 1:] += 200 * (b - a**2)
        return (100 * (b - a**2) ** 2 + (1 - a) ** 2).sum(-1), g

    found, values = minimise(rosenbrock, starts)
    for start, point, value in zip(starts, found, values, strict=True):
        theirs = minimize(
            lambda x: [v[0] for v in rosenbrock(x[None], np.zeros(1))], start, jac=True, method="L-BFGS-B"
        )
        assert value <= theirs.fun + 1e-9
        np.testing.assert_allclose(point, 1, atol=1e-3)


def test_kaplans_laws_come_back_from_their_published_constants() -> None:
    """Kaplan et al. 2020, table 2 and 3."""
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e6, 1e9, 6), np.geomspace(2e7, 2e10, 6)))
    loss = ((6.4e13 / n) ** (0.076 / 0.103) + 1.8e13 / d) ** 0.103
    found = fit(Kaplan(), points(n, d, loss), 0)
    assert found.law.constants(found.theta[None])[0] == pytest.approx([6.4e13, 1.8e13, 0.076, 0.103], rel=1e-3)
    sizes = np.geomspace(1e6, 1e9, 8)
    alone = fit(Power("N"), points(sizes, sizes, (8.8e13 / sizes) ** 0.076), 0)
    assert alone.law.constants(alone.theta[None])[0] == pytest.approx([8.8e13, 0.076], rel=1e-3)
    power = Power("C")
    seen = points(sizes, sizes, np.array([5, 4, 4.5, 3, 3, 2.9, 3.5, 2]))
    assert power.frontier(seen).tolist() == [True, True, False, True, False, True, False, True]


def test_the_law_of_experts_comes_back_from_its_published_constants() -> None:
    """Clark et al. 2022, table 3, S-BASE: a, b, c, d, E_start, E_max."""
    a, b, c, d, first, last = published = (-0.082, -0.108, 0.009, 1.104, 1.847, 314.478)
    n, e = (grid.ravel() for grid in np.meshgrid(np.geomspace(1.5e7, 1.3e9, 5), [1, 2, 4, 8, 32, 64, 128, 256, 512]))
    many = 1 / (1 / (e - 1 + 1 / (1 / first - 1 / last)) + 1 / last)
    loss = 10 ** (a * np.log10(n) + b * np.log10(many) + c * np.log10(n) * np.log10(many) + d)
    known = points(n, n, loss)
    found = fit(Clark(), Points(n, n, known.flops, loss, known.budget, e, known.names), 0)
    assert found.law.constants(found.theta[None])[0] == pytest.approx(published, rel=0.02)


def known_law(seed: int, noise: float = 0.002, budgets: int = 4, sizes: int = 5) -> Points:
    """IsoFLOP runs around the best sizes of the published law, with noise on log L."""
    c = np.repeat(np.geomspace(1e19, 1e22, budgets), sizes)
    best = optimum({name: np.array(value) for name, value in PUBLISHED.items()}, 1.0, Cost())
    a = PUBLISHED["β"] / (PUBLISHED["α"] + PUBLISHED["β"])
    n = best * c**a * np.tile(np.exp(np.linspace(-1.2, 1.2, sizes)), budgets)
    d = c / 6 / n
    loss = PUBLISHED["E"] + PUBLISHED["A"] / n ** PUBLISHED["α"] + PUBLISHED["B"] / d ** PUBLISHED["β"]
    return points(n, d, loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(n))), c)


def test_approaches_2_and_3_agree_and_hold_the_true_exponents_in_95_of_100_draws() -> None:
    class Near(Chinchilla):
        def starts(self) -> np.ndarray:
            """One; that the whole grid finds the minimum is tested on real points."""
            return np.array([[6.0, 7.5, 0.5, 0.35, 0.35]])

    a = PUBLISHED["β"] / (PUBLISHED["α"] + PUBLISHED["β"])
    held = {"α": 0, "β": 0, "a by parabolas": 0, "a by the law": 0, "agree": 0}
    for seed in range(100):
        runs = known_law(seed)
        found = fit(Near(), runs, 150, seed)
        lines = frontier.by_parabolas(runs, frontier.parabolas(runs), 150, seed)
        assert not isinstance(lines, str)
        drawn = found.law.constants(found.drawn)
        intervals = {
            "α": found.constants()["α"]["interval"],
            "β": found.constants()["β"]["interval"],
            "a by parabolas": interval(lines.drawn[:, 1], lines.count, lines.unknowns),
            "a by the law": interval(drawn[:, 4] / (drawn[:, 3] + drawn[:, 4]), len(runs.loss), 5),
        }
        for name, (low, high) in intervals.items():  # type: ignore[misc]
            held[name] += low <= PUBLISHED.get(name, a) <= high
        (l2, h2), (l3, h3) = intervals["a by parabolas"], intervals["a by the law"]  # type: ignore[misc]
        held["agree"] += max(l2, l3) <= min(h2, h3)
    assert all(count >= 95 for count in held.values()), held


def test_the_cost_of_a_token_that_grows_unlike_n_moves_the_optimum() -> None:
    """Against a search over every size, where a token of size N costs 20·N^0.9."""
    n, d = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e5, 1e8, 5), np.geomspace(1e7, 1e9, 4)))
    runs = points(n, d, n)
    cost = Cost.of(Points(n, d, 20 * n**0.9 * d, n, runs.budget, runs.experts, runs.names))
    assert (cost.kappa, cost.gamma) == pytest.approx((20, -0.1))
    every = np.geomspace(1e6, 1e12, 200001)
    loss = 482.01 / every**0.3478 + 2085.43 / (1e20 / cost.kappa / every ** (1 + cost.gamma)) ** 0.3658
    found = optimum({name: np.array(value) for name, value in PUBLISHED.items()}, 1e20, cost)
    assert found == pytest.approx(every[loss.argmin()], rel=1e-3)


def test_training_curves_give_the_exponent_of_their_envelope() -> None:
    """Curves that are the law itself: at every C the best of dense sizes is the optimum."""
    curves = []
    for n in np.geomspace(1e7, 1e11, 80):
        d = np.geomspace(1e8, 1e13, 300)
        loss = 1.8172 + 482.01 / n**0.3478 + 2085.43 / d**0.3658
        curves.append(frontier.Curve(n, 6 * n * d, d, loss))
    found = frontier.by_curves(curves, 20)
    assert not isinstance(found, str)
    a = 0.3658 / (0.3478 + 0.3658)
    assert found.lines[[1, 3]] == pytest.approx([a, 1 - a], abs=0.01)
    assert len(found.drawn) == 20
    few = [*curves[:1], *curves[:1]]
    assert frontier.by_curves(few, 5) == "needs training curves of 3 sizes, found 1"


def test_a_parabola_whose_minimum_is_not_seen_is_left_out_with_a_reason() -> None:
    runs = known_law(0, noise=0)
    high = runs.where(runs.parameters > 1.1 * np.median(runs.parameters))
    reasons = {one.wrong for one in frontier.parabolas(high)}
    assert reasons & {"fewer than 3 sizes", "minimum outside the sizes tried"}
    said = frontier.by_parabolas(high.where(high.budget == high.budget[0]), frontier.parabolas(high)[:1], 10)
    assert isinstance(said, str)
    assert "needs 2 budgets" in said


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (lambda p: p.budget == p.budget[0], "have one value of N|two values|too few"),
        (lambda p: np.arange(len(p.loss)) < 5, "5 points are too few"),
        (lambda p: np.isclose(p.parameters, p.parameters[0]), "too few"),
    ],
)
def test_too_few_points_are_refused(chosen, message) -> None:  # type: ignore[no-untyped-def]
    runs = known_law(0)
    with pytest.raises(UserError, match=message):
        study(SweepPoints(runs.where(chosen(runs)), [], {}), draws=2)


def test_a_grid_of_one_size_or_of_one_token_count_is_refused_by_name() -> None:
    n, d = np.full(8, 1e8), np.geomspace(1e9, 1e10, 8)
    with pytest.raises(UserError, match="one value of N, parameters"):
        study(SweepPoints(points(n, d, 3 + 1 / d), [], {}))
    with pytest.raises(UserError, match="one value of D, tokens"):
        study(SweepPoints(points(d, n, 3 + 1 / d), [], {}))
