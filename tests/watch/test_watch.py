"""`t5x-lite watch`: the state of a run that trains, has ended, is resumed, or is no run."""

import json
import math
import threading
import time
from pathlib import Path

import pytest

from t5x_lite.cli import main
from t5x_lite.watch.display import sparkline
from t5x_lite.watch.follower import MetricsFollower


def write_run(folder: Path, steps: int, text: str) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(f"train: {{steps: {steps}}}\n")
    (folder / "metrics.jsonl").write_text(text)
    return folder


def line(step: int, **metrics: object) -> str:
    record = {"step": step, "loss": 5.0 - step, "tokens": step * 1000, "tokens_per_second": 2000.0, "mfu": 0.25}
    return json.dumps({**record, "seconds_per_step": 0.5, **metrics}) + "\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run after three of ten steps of half a second; its third line is not finished."""
    text = line(1) + line(2, **{"eval/loss": 3.25, "eval/blimp/set/x": 0.5}) + line(3) + '{"step": 4, "lo'
    folder = write_run(tmp_path / "run", 10, text)
    for step, is_complete in ((2, True), (3, False)):
        (folder / f"checkpoints/{step}").mkdir(parents=True)
        if is_complete:
            (folder / f"checkpoints/{step}/manifest.json").write_text("{}")
    return folder


def test_the_state_of_a_run_is_printed_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(run), "--once"]) == 0
    rows = dict(row.split(maxsplit=1) for row in capsys.readouterr().out.splitlines())
    assert rows == {
        "run": str(run),
        "step": "3/10 (30.0%), 4s left",  # seven steps of half a second
        "loss": "2.0000  █▅▁",
        "speed": "2k tok/s, MFU 25.0%",
        "tokens": "3k",
        "checkpoint": "step 2",
        "evaluation": "step 2: loss 3.25",
    }


def test_the_state_is_one_json_object(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(run), "--json"]) == 0
    state = json.loads(capsys.readouterr().out)
    assert (state["step"], state["steps"], state["complete"], state["loss"]) == (3, 10, False, 2.0)
    assert (state["checkpoint"], state["evaluation_step"], state["eval/loss"]) == (2, 2, 3.25)
    assert state["seconds_left"] == 3.5


def test_a_run_before_its_first_step_has_a_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", 10, "")
    (folder / "metrics.jsonl").unlink()
    assert main(["watch", str(folder), "--once"]) == 0
    output = capsys.readouterr().out
    assert "0/10 (0.0%), no step is finished yet" in output
    assert "none yet" in output


def test_a_run_is_followed_until_it_is_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run", 3, line(1))

    def train() -> None:
        with (folder / "metrics.jsonl").open("a") as file:
            for step in (2, 3):
                time.sleep(0.05)
                file.write(line(step))
                file.flush()

    training = threading.Thread(target=train)
    training.start()
    assert main(["watch", str(folder), "--every", "0.01"]) == 0
    for seconds in ("nan", "0", "1e300"):
        assert main(["watch", str(folder), "--every", seconds]) == 2
    training.join()
    assert "3/3 (100.0%), complete" in capsys.readouterr().out


def test_new_lines_are_read_and_those_of_a_resumed_run_replace_the_repeated_ones(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 10, line(1) + line(2))
    follower = MetricsFollower(str(folder))
    assert follower.update()
    assert not follower.update()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(line(3) + line(4)[:-5])
    assert follower.update()
    assert [record["step"] for record in follower.records] == [1, 2, 3]
    # Resumed after step 1, and already beyond what was read.
    text = line(1) + "".join(line(step, loss=9.0) for step in range(2, 9))
    (folder / "metrics.jsonl").write_text(text)
    assert follower.update()
    assert [record["loss"] for record in follower.records] == [4.0] + [9.0] * 7


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "is not a run directory (no config.yaml)"),
        ({"config.yaml": "train: {steps: [1"}, "not valid YAML"),
        ({"config.yaml": "model: {}"}, "has no number of steps"),
    ],
)
def test_a_folder_that_is_no_run_is_one_line(
    files: dict[str, str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert main(["watch", str(tmp_path), "--once"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert reason in error


def test_a_sparkline_goes_from_the_least_to_the_largest_value() -> None:
    assert sparkline([8.0, 8.0, 8.0, 1.0, 1.0, 1.0], 40) == "██▆▃▁▁"  # running means of three: 8, 8, 5⅔, 3⅓, 1, 1
    assert sparkline([1.0] * 5, 3) == "▁▁▁"
    assert sparkline([2.0, math.nan, 1.0], 3)[1] == " "
    assert sparkline([math.nan], 3) == ""
    assert len(sparkline([float(value) for value in range(1000)], 40)) == 40
