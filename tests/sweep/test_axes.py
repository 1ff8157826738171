"""Values of the axes of a sweep."""

import pytest

from t5x_lite.errors import UserError
from t5x_lite.sweep.axes import axis_values, combinations
from t5x_lite.sweep.config import SweepConfig


def test_values_are_a_list_a_range_or_a_logarithmic_range() -> None:
    assert axis_values("k", [1, 2]) == [1, 2]
    assert axis_values("k", {"range": [1, 7, 3]}) == [1, 4, 7]
    assert axis_values("k", {"log": [1e-3, 1e-1, 3]}) == [1e-3, 1e-2, 1e-1]


@pytest.mark.parametrize("values", [[], 5, {"log": [0, 1, 3]}, {"range": [1, 2, 0]}, {"linear": [1, 2, 3]}])
def test_other_forms_are_refused_by_key(values: object) -> None:
    with pytest.raises(UserError, match="k: expected a list"):
        axis_values("k", values)


def test_a_budget_that_is_not_a_number_is_refused() -> None:
    config = SweepConfig(config="run.yaml", budgets=["much"])
    with pytest.raises(UserError, match="budgets: expected numbers"):
        list(combinations(config))
