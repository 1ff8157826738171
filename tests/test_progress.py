"""Tables and numbers on the terminal and in files."""

import io
import json

import pytest
from rich.console import Console

from t5x_lite.progress import format_si, print_metrics, print_table


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (0.5, "0.5"), (12_345, "12.3k"), (999_999, "1M"), (-2e9, "-2G"), (1.52e15, "1.52P"), (3.14e23, "314Z")],
)
def test_si_prefixes_are_those_of_the_brochure(number: float, text: str) -> None:
    assert format_si(number) == text


def test_metrics_that_are_not_finite_are_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON has no NaN and no infinity (RFC 8259, §6)."""
    print_metrics({"loss": 2.5, "a": float("nan"), "b": float("inf")}, as_json=True)
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"loss": 2.5, "a": None, "b": None}


def test_no_cell_of_a_table_is_cut_in_a_file() -> None:
    cells = ("r" * 70, "7.88e+05", "1.66e+14", "running")
    file = io.StringIO()
    print_table(Console(file=file, width=40), "runs", ("run", "N", "C", "state"), [cells])
    assert any(all(cell in line for cell in cells) for line in file.getvalue().splitlines())
