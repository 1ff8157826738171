"""Points from a CSV file: columns by several names, errors with their line, runs that are left out."""

from pathlib import Path

import numpy as np
import pytest

from t5x_lite.errors import UserError
from t5x_lite.sweep.csv_points import read_csv

N = 1e6
D = 2e7
C = 6 * N * D


@pytest.mark.parametrize(
    ("header", "sizes"),
    [
        ("N,D,loss", (N, D)),
        ("params,Training Tokens,Loss", (N, D)),
        ("Model Size,Training FLOP,loss", (N, C)),
        ("flops,tokens,eval_loss", (C, D)),
    ],
)
def test_two_of_n_d_and_c_are_enough_under_several_names(
    tmp_path: Path, header: str, sizes: tuple[float, float]
) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(f"{header}\n{sizes[0]},{sizes[1]},3.5\n\n")
    points = read_csv(path).points
    assert (points.parameters[0], points.tokens[0], points.flops[0], points.loss[0]) == pytest.approx(
        (1e6, 2e7, 1.2e14, 3.5)
    )


def test_a_diverged_run_and_an_incomplete_last_row_are_left_out_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("run,N,D,loss\na,1e6,2e7,3.5\nb,1e6,4e7,nan\nc,1e6,8e7,3.1\nd,1e6,1")
    sweep_points = read_csv(path)
    assert sweep_points.points.names == ("a", "c")
    assert sweep_points.left_out == {"b": "diverged: loss is nan", "line 5": "the last row is incomplete"}
    path.write_text("run,N,D,loss\na,1e6,2e7,3.5\nd,1e6,x,3.2\n")
    with pytest.raises(UserError, match=r"runs\.csv:3: expected numbers in .*, found d,1e6,x,3.2"):
        read_csv(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "runs.csv:1: needs columns loss and two of N, D and C"),
        ("N,loss\n1,2\n", "runs.csv:1: needs columns"),
        ("N,D,loss\n1e6,many,3\n1e6,1e7,3\n", "runs.csv:2: expected numbers"),
        ("N,D,loss\n-1,5,3\n1,2,3\n", "runs.csv:2: N, D and C must be above 0"),
        ("N,D,loss,run\n1,5,3\n1,2,3,a\n", "runs.csv:2: expected numbers"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_csv(path)


def test_several_rows_of_one_run_are_its_curve(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("run,N,D,loss\na,1e6,2e7,3.5\na,1e6,4e7,3.2\nb,2e6,2e7,3.4\n")
    sweep_points = read_csv(path)
    assert sweep_points.points.names == ("a", "b")
    assert sweep_points.points.loss.tolist() == [3.2, 3.4]
    (curve,) = sweep_points.curves
    np.testing.assert_allclose(curve.flops, [1.2e14, 2.4e14])
