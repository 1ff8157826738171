"""Trends over the sizes of a sweep: against SciPy, hand counts and curves of known shape."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from t5x_lite.evaluate.example_scores import gather_scores
from t5x_lite.sweep.abilities import Abilities, build_abilities
from t5x_lite.sweep.evaluations import TaskResult
from t5x_lite.sweep.planned_run import PlannedRun
from t5x_lite.sweep.trends import adjust_holm, count_flat, falls, fit_trend

SIZES = np.geomspace(1e12, 1e18, 7)


def planned_run(flops: float) -> PlannedRun:
    return PlannedRun(
        name=f"c{flops:.3g}",
        config="",
        overrides={},
        run_dir="",
        parameters=flops**0.5,
        tokens=flops**0.5 / 6,
        flops=flops,
        budget=flops,
        experts=1,
        steps=1,
        computed_steps=1,
        step_flops=flops,
    )


def test_holm_s_correction_is_that_of_a_worked_example() -> None:
    """Sorted p of 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, and never below the one before."""
    assert adjust_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_p_of_a_strict_fall_is_one_over_the_number_of_orders() -> None:
    """Of the 5040 orders of seven values one falls all the way, and one rises."""
    values = 1.0 - 0.1 * np.arange(7)
    trend = fit_trend(SIZES, values, None, sign=1)
    assert trend is not None
    assert trend.p_fall == pytest.approx(1 / math.factorial(7))
    assert trend.p_rise == pytest.approx(1)
    assert trend.slope == pytest.approx(-0.1)  # a decade from size to size
    # For a metric that should be low, the same values are a rise of the ability.
    lower_is_better = fit_trend(SIZES, values, None, sign=-1)
    assert lower_is_better is not None
    assert lower_is_better.p_rise == pytest.approx(1 / math.factorial(7))


def test_a_fall_that_the_examples_do_not_bear_out_is_not_significant() -> None:
    values = 0.5 - 0.001 * np.arange(7)
    draws = np.random.default_rng(0).normal(values, 0.2, size=(1000, 7))
    trend = fit_trend(SIZES, values, draws, sign=1)
    assert trend is not None
    assert not falls(trend, trend.p_fall, sign=1)
    sure = fit_trend(SIZES, values, np.random.default_rng(0).normal(values, 1e-4, size=(1000, 7)), sign=1)
    assert sure is not None
    assert falls(sure, sure.p_fall, sign=1)
    assert not falls(sure, 0.06, sign=1)


def test_too_few_runs_have_no_trend() -> None:
    assert fit_trend(SIZES[:2], np.array([1.0, 2.0]), None, sign=1) is None
    assert fit_trend(np.full(5, 1e12), np.arange(5.0), None, sign=1) is None


def test_the_flat_part_ends_where_the_bootstrap_is_above_the_smallest_size() -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, size=(1000, 1))
    more_noise = np.random.default_rng(1).normal(0, 0.01, size=(1000, 4))
    assert count_flat(noise + more_noise + np.array([0.0, 0.0, 0.1, 0.2])) == 2
    assert count_flat(more_noise) == 4
    assert count_flat(noise + np.array([0.0, 0.001, 0.002, 0.003])) == 1  # the same examples were drawn for all


def build_arithmetic(per_token: np.ndarray, tokens: int, examples: int = 400) -> Abilities:
    """Return the curves of models with a probability per token, and exact match at the rate p to the power tokens."""
    runs = [planned_run(flops) for flops in SIZES.tolist()]
    results = {}
    for run, probability in zip(runs, per_token.tolist(), strict=True):
        right = round(examples * probability**tokens)
        records = []
        for number in range(examples):
            score = {"log_likelihood": tokens * math.log(probability), "tokens": float(tokens)}
            records.append({**score, "correct": float(number < right)})
        results[run.name] = TaskResult(gather_scores(records), {})
    return build_abilities({"sums": results}, runs)


def test_exact_match_of_many_tokens_looks_sudden_where_likelihood_is_smooth() -> None:
    """Schaeffer et al. 2023, §2: the accuracy of an answer of L tokens is about p to the power L."""
    per_token = np.exp(-np.geomspace(4.0, 0.1, 7))
    abilities = build_arithmetic(per_token, tokens=10)
    # Exact match of 400 examples is 0, 0, 0 and 0.25 % at first: exp(-10 · 0.63) is 0.18 %.
    assert abilities.notes["sums"].startswith("exact match is flat up to C = 1e+15 and looks sudden")
    curves = abilities.curves["sums"]
    assert curves["log_likelihood_per_token"].values == pytest.approx(np.log(per_token))
    assert curves["probability"].values == pytest.approx(per_token**10)
    assert curves["accuracy"].title == "exact match"
    assert not abilities.inverse


def test_exact_match_of_one_token_that_rises_with_the_likelihood_has_no_note() -> None:
    assert not build_arithmetic(np.linspace(0.2, 0.9, 7), tokens=1).notes


def test_a_rise_below_the_resolution_of_exact_match_is_noted() -> None:
    abilities = build_arithmetic(np.linspace(0.01, 0.1, 7), tokens=5)
    assert abilities.curves["sums"]["accuracy"].values == pytest.approx(np.zeros(7))
    assert abilities.notes["sums"].startswith("exact match (at most 0.00%, in steps of 0.25%) does not show the rise")


def test_inverse_scaling_is_found_and_its_opposite_is_not() -> None:
    falling = build_arithmetic(np.linspace(0.9, 0.2, 7), tokens=1)
    assert ("sums", "accuracy", "flops") in falling.inverse
    assert ("sums", "log_likelihood", "parameters") in falling.inverse
    # Four metrics on two axes, each with p of 1/5040: all eight together are corrected to 8/5040 at most.
    assert max(falling.inverse.values()) == pytest.approx(8 / math.factorial(7))


def test_intervals_of_accuracy_are_those_of_the_binomial_distribution() -> None:
    abilities = build_arithmetic(np.linspace(0.2, 0.9, 7), tokens=1)
    accuracy = abilities.curves["sums"]["accuracy"]
    intervals = accuracy.intervals()
    assert intervals is not None
    for (low, high), share in zip(intervals.T, accuracy.values.tolist(), strict=True):
        assert low == pytest.approx(binom.ppf(0.025, 400, share) / 400, abs=0.008)
        assert high == pytest.approx(binom.ppf(0.975, 400, share) / 400, abs=0.008)
