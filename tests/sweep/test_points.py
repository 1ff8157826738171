"""Reading points: columns of many names, faults by line, runs that are left out."""

import json
from pathlib import Path

import numpy as np
import pytest

from t5x_lite.errors import UserError
from t5x_lite.sweep.points import from_csv, rows

HEADS = ["N,D,loss", "params,Training Tokens,Loss", "Model Size,Training FLOP,loss", "flops,tokens,eval_loss"]


@pytest.mark.parametrize("head", HEADS)
def test_two_of_n_d_and_c_are_enough_under_many_names(tmp_path: Path, head: str) -> None:
    values = {"n": 1e6, "d": 2e7, "c": 6 * 1e6 * 2e7}
    order = {"N,D,loss": "nd", "params,Training Tokens,Loss": "nd", "Model Size,Training FLOP,loss": "nc"}.get(
        head, "cd"
    )
    path = tmp_path / "runs.csv"
    path.write_text(f"{head}\n{values[order[0]]},{values[order[1]]},3.5\n\n")
    found = from_csv(path).points
    assert (found.parameters[0], found.tokens[0], found.flops[0], found.loss[0]) == pytest.approx(
        (1e6, 2e7, 1.2e14, 3.5)
    )


def test_a_diverged_run_is_left_out_with_a_reason_and_a_torn_last_row_too(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("run,N,D,loss\na,1e6,2e7,3.5\nb,1e6,4e7,nan\nc,1e6,8e7,3.1\nd,1e6,1")
    found = from_csv(path)
    assert found.points.names == ("a", "c")
    assert found.left_out == {"b": "diverged: loss is nan", "line 5": "the last row is not whole"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "runs.csv:1: needs columns loss and two of N, D and C"),
        ("N,loss\n1,2\n", "runs.csv:1: needs columns"),
        ("N,D,loss\n1e6,many,3\n1e6,1e7,3\n", "runs.csv:2: expected numbers"),
        ("N,D,loss\n-1,5,3\n1,2,3\n", "runs.csv:2: N, D and C must be above 0"),
    ],
)
def test_faults_are_named_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        from_csv(path)


def test_several_rows_of_a_run_are_its_curve(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("run,N,D,loss\na,1e6,2e7,3.5\na,1e6,4e7,3.2\nb,2e6,2e7,3.4\n")
    found = from_csv(path)
    assert found.points.names == ("a", "b")
    assert found.points.loss.tolist() == [3.2, 3.4]
    (curve,) = found.curves
    np.testing.assert_allclose(curve.flops, [1.2e14, 2.4e14])


def test_the_newest_whole_row_of_a_run_counts(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    lines = [{"run": "a", "state": "running"}, {"run": "a", "state": "done"}, {"run": "b", "state": "failed"}]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"run": "b", "sta')
    assert {name: row["state"] for name, row in rows(path).items()} == {"a": "done", "b": "failed"}
