"""Runs that are killed, stopped or damaged: they resume bit for bit, or end with one line of error."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from t5x_lite.errors import STOPPED
from t5x_lite.locked_folder import lock_dir
from t5x_lite.run_dir import open_run
from tests.conftest import lines
from tests.train.whole_runs import assert_same_weights, train, train_command

LONGEST_WAIT_BEFORE_KILL = 0.35
"""Seconds between the first metrics of a start and its end by SIGKILL, at most."""


def kill_at_random_moment(command: list[str], metrics: Path, rng: random.Random) -> None:
    """Start a run, wait until it has written metrics, and kill it a little later."""
    size_before = metrics.stat().st_size if metrics.exists() else 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if metrics.exists() and metrics.stat().st_size != size_before:
                break
            time.sleep(0.01)
        time.sleep(rng.uniform(0, LONGEST_WAIT_BEFORE_KILL))
        assert process.poll() is None, "the run ended before it was killed"
        process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize(("kills", "steps"), [(1, 50), pytest.param(10, 300, marks=pytest.mark.slow)])
def test_a_run_that_was_killed_ends_as_an_undisturbed_run(
    kills: int, steps: int, tiny_config: Path, tmp_path: Path
) -> None:
    """SIGKILL at random moments, while a checkpoint is being saved most of the time."""
    overrides = (f"train.steps={steps}", "checkpoint.every_steps=3", "eval.every_steps=50", "model.dropout=0.1")
    undisturbed = tmp_path / "undisturbed"
    killed = tmp_path / "killed"
    assert train(tiny_config, undisturbed, *overrides) == 0
    rng = random.Random(1)
    command = train_command(tiny_config, killed, *overrides)
    for _ in range(kills):
        kill_at_random_moment(command, killed / "metrics.jsonl", rng)
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    assert [record["step"] for record in lines(killed)] == list(range(1, steps + 1))
    assert_same_weights(killed, undisturbed)
    losses = [record["loss"] for record in lines(killed)]
    assert losses == [record["loss"] for record in lines(undisturbed)]


@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_stopped_run_saves_a_checkpoint_and_has_its_own_exit_code(
    tiny_config: Path, tmp_path: Path, stop_signal: signal.Signals
) -> None:
    run_dir = tmp_path / "run"
    overrides = ("train.steps=100000", "checkpoint.every_steps=100000", "eval.every_steps=100000")
    with subprocess.Popen(
        train_command(tiny_config, run_dir, *overrides), stderr=subprocess.PIPE, text=True
    ) as process:
        while not (run_dir / "metrics.jsonl").exists() or not lines(run_dir):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(stop_signal)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == STOPPED
    last_step = lines(run_dir)[-1]["step"]
    assert f"stopped and saved at step {last_step}" in errors
    assert open_run(run_dir).checkpoints.steps() == [last_step]


def test_a_damaged_newest_checkpoint_is_skipped_and_the_run_resumes_from_the_one_before(
    tiny_run: Path, tiny_config: Path, copy_of_tiny_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state_files = [path for path in (copy_of_tiny_run / "checkpoints/12/state").rglob("*") if path.is_file()]
    largest_file = max(state_files, key=lambda path: path.stat().st_size)
    os.truncate(largest_file, largest_file.stat().st_size - 1)
    assert train(tiny_config, copy_of_tiny_run) == 0
    assert "resumed from step 8" in capfd.readouterr().err
    assert [record["step"] for record in lines(copy_of_tiny_run)] == list(range(1, 13))
    assert_same_weights(copy_of_tiny_run, tiny_run)


LIMIT_FILE_SIZE = """
import resource, sys
from t5x_lite.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
sys.exit(main(sys.argv[1:]))
"""
"""Runs a command of t5x-lite with a limit on the size of files: writing then fails (EFBIG) as on a full disk."""


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_one_line_and_leaves_a_checkpoint_to_resume_from(
    tiny_config: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    assert train(tiny_config, run_dir, "train.steps=12") == 0
    arguments = ["train", str(tiny_config), f"run_dir={run_dir}", "train.steps=100", "train.allow_changed_config=true"]
    process = subprocess.run(
        [sys.executable, "-c", LIMIT_FILE_SIZE, *arguments], capture_output=True, text=True, check=False
    )
    assert process.returncode == 2, process.stderr
    error_lines = [line for line in process.stderr.splitlines() if "could not be written" in line]
    assert len(error_lines) == 1
    assert "the disk is full; earlier checkpoints are intact" in error_lines[0]
    assert "Traceback" not in process.stderr
    assert open_run(run_dir).checkpoints.steps()[-1] == 12
    assert train(tiny_config, run_dir, "train.steps=20", "train.allow_changed_config=true") == 0


def test_a_second_process_cannot_train_the_same_run(
    tiny_config: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with lock_dir(tmp_path, "locked by this test"):
        # The lock comes before the data, whose preparation may take hours.
        assert train(tiny_config, tmp_path, f"data.files={tmp_path}/missing.txt") == 2
    assert "another process trains this run" in capfd.readouterr().err


def test_a_run_that_cannot_begin_leaves_no_folder(tiny_config: Path, tmp_path: Path) -> None:
    assert train(tiny_config, tmp_path / "runs" / "run", f"data.files={tmp_path}/missing.txt") == 2
    assert not (tmp_path / "runs").exists()
