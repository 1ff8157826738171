"""Arithmetic in sweep files."""

import pytest

from t5x_lite.errors import UserError
from t5x_lite.sweep.expression import evaluate

VALUES = {"model.embed": 64, "N": 1e6, "data.files": "x"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8 * round(model.embed / 3)", 168),
        ("-2 ** 2 + 7 // 2 % 2", -3),
        ("max(sqrt(16), log2(8), floor(2.9))", 4),
        ("0.003239 - 0.0001395 * log(N)", 0.0013117),
    ],
)
def test_arithmetic_is_evaluated(text: str, value: float) -> None:
    assert evaluate(text, VALUES.__getitem__) == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "N.__class__",
        "'a' * 3",
        "model.layers",
        "1 +",
        "[1][0]",
        "data.files",
        "(lambda: 1)()",
        "1/0",
        "9.0**9999",
        "True",
        "round(1, ndigits=2)",
    ],
)
def test_anything_but_arithmetic_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="'"):
        evaluate(text, VALUES.__getitem__)
