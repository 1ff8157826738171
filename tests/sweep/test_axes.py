"""Values of the axes of a sweep."""

import math
import tracemalloc
from typing import Any

import pytest

from t5x_lite.errors import UserError
from t5x_lite.sweep.axes import axis_values, combinations
from t5x_lite.sweep.config import SweepConfig


def test_values_are_a_list_a_range_or_a_logarithmic_range() -> None:
    assert axis_values("k", [1, 2]) == [1, 2]
    assert axis_values("k", {"range": [1, 7, 3]}) == [1, 4, 7]
    assert axis_values("k", {"log": [1e-3, 1e-1, 3]}) == [1e-3, 1e-2, 1e-1]


@pytest.mark.parametrize(
    "values",
    [
        [],
        5,
        {"log": [0, 1, 3]},
        {"log": [1, 10**400, 3]},
        {"log": [1e-300, 1e300, 3]},
        {"range": [1, 2, 0]},
        {"range": [0, math.inf, 1]},
        {"range": [0, math.nan, 1]},
        {"range": [True, 2, 1]},
        {"linear": [1, 2, 3]},
    ],
)
def test_other_forms_are_refused_by_key(values: object) -> None:
    with pytest.raises(UserError, match="k: expected a list"):
        axis_values("k", values)


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(UserError, match=r"k: range \[3, 1, 1\] is empty"):
        axis_values("k", {"range": [3, 1, 1]})


@pytest.mark.parametrize("budget", ["much", True, 0, -1e18, math.inf, math.nan, 10**400])
def test_a_budget_that_is_not_a_positive_number_is_refused(budget: object) -> None:
    config = SweepConfig(config="run.yaml", budgets=[budget])
    with pytest.raises(UserError, match="budgets: expected numbers"):
        list(combinations(config))


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"a": {"k": {"range": [0, 1, 1e-9]}}}, r"axes.a.k: has 1e\+09 values; a sweep has at most 10,000 runs"),
        ({"a": {"k": {"range": [0, 1, 5e-324]}}}, "axes.a.k: has inf values"),
        ({"a": {"k": {"log": [1, 2, 10**9]}}}, r"axes.a.k: has 1e\+09 values"),
        ({name: {name: list(range(1000))} for name in "abc"}, r"1,000,000,000 runs \(1000 × 1000 × 1000"),
    ],
)
def test_a_sweep_of_too_many_runs_is_refused_without_listing_them(
    axes: dict[str, dict[str, object]], message: str
) -> None:
    config = SweepConfig(config="run.yaml", axes=axes)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message):
            list(combinations(config))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 5e6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"axes": {"a": {"k": [1]}, "b": {"k": [2]}}}, "axes.b.k: axes.a.k decides it too"),
        ({"axes": {"a": {"k": [1]}}, "derived": {"k": "2"}}, "axes.a.k: derived.k decides it too"),
        ({"set": {"m": {"k": 1}}, "axes": {"a": {"m.k": [1]}}}, "axes.a.m.k: set.m.k decides it too"),
        ({"set": {"k": 1}, "derived": {"k": "2"}}, "derived.k: set.k decides it too"),
        ({"axes": {"a": {"train.seed": [1, 2]}}}, "axes.a.train.seed: give `seeds` instead"),
        ({"set": {"train.seed": 1}}, "set.train.seed: give `seeds` instead"),
        ({"axes": {"a": {"train.steps": [1, 2]}}, "budgets": [1e15]}, "axes.a.train.steps: `budgets` decides it too"),
        ({"derived": {"train.steps": "N"}, "budgets": [1e15]}, "derived.train.steps: `budgets` decides it too"),
        (
            {"set": {"optimizer.learning_rate": 0.1}, "learning_rate": "kaplan"},
            "set.optimizer.learning_rate: the rule `learning_rate` decides it too",
        ),
        (
            {"axes": {"a": {"train.batch_size": [1]}}, "batch_size": "kaplan"},
            "axes.a.train.batch_size: the rule `batch_size` decides it too",
        ),
    ],
)
def test_a_value_that_would_silently_replace_another_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(combinations(SweepConfig(config="run.yaml", **settings)))
