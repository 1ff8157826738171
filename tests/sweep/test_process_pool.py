"""Runs as local processes: retried, diverged, skipped, stopped, and never started twice."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from t5x_lite.errors import STOPPED
from t5x_lite.metrics_file import metric_records
from t5x_lite.sweep.config import Sweep
from t5x_lite.sweep.device_share import DeviceShare, device_share
from t5x_lite.sweep.grid import expand
from t5x_lite.sweep.launch import is_complete
from t5x_lite.sweep.planned_run import PlannedRun
from t5x_lite.sweep.process_pool import ProcessPool
from t5x_lite.sweep.status_log import StatusLog, read_statuses

FAKE_RUN = """
import json, os, pathlib, signal, sys, time
folder, steps, behaviour = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
folder.mkdir(parents=True, exist_ok=True)
with (folder / "started").open("a") as file:
    file.write("x")
starts = len((folder / "started").read_text())
if behaviour == "diverge":
    print("t5x-lite: step 7: loss was not finite", file=sys.stderr)
    sys.exit(3)
if behaviour == "wrong input":
    sys.exit(2)
if behaviour == "crash" or (behaviour == "crash once" and starts == 1):
    print("Traceback: boom", file=sys.stderr)
    sys.exit(1)
if behaviour == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    time.sleep(30)
metrics = folder / "metrics.jsonl"
if behaviour == "resume":
    metrics.write_text(json.dumps({"step": 1, "loss": 3.0}) + "\\n")
    time.sleep(1.5)
    metrics.write_text("")
metrics.write_text(json.dumps({"step": steps, "loss": 2.0, "tokens": 9, "eval/loss": 2.1}) + "\\n")
if behaviour == "resume":
    time.sleep(1.5)
saved = folder / "checkpoints" / str(steps)
saved.mkdir(parents=True)
(saved / "manifest.json").write_text("{}")
"""

PoolFactory = Callable[..., tuple[ProcessPool, list[PlannedRun]]]


@pytest.fixture
def make_pool(sweep: Sweep, tmp_path: Path) -> PoolFactory:
    """A function that takes the behaviour of each of three runs, and returns a pool with these runs."""
    program = tmp_path / "fake_run.py"
    program.write_text(FAKE_RUN)

    def make(*behaviours: str) -> tuple[ProcessPool, list[PlannedRun]]:
        runs = expand(sweep)
        behaviour_of = {run.name: behaviour for run, behaviour in zip(runs, behaviours, strict=True)}
        sweep.folder.mkdir(exist_ok=True)

        def command(run: PlannedRun) -> list[str]:
            return [sys.executable, str(program), run.run_dir, str(run.steps), behaviour_of[run.name]]

        log = StatusLog(sweep.folder / "sweep.jsonl")
        return ProcessPool(sweep, log, dict(os.environ), command), runs

    return make


def all_states(sweep: Sweep) -> set[str]:
    """Every state that the log has ever had."""
    return {record["state"] for record in metric_records(sweep.folder / "sweep.jsonl")}


def last_states(sweep: Sweep, runs: list[PlannedRun]) -> list[str]:
    statuses = read_statuses(sweep.folder / "sweep.jsonl")
    return [statuses[run.name]["state"] for run in runs]


def count_starts(run: PlannedRun) -> int:
    path = Path(run.run_dir) / "started"
    return len(path.read_text()) if path.is_file() else 0


def test_a_run_that_removes_the_lines_of_steps_that_it_repeats_is_followed(
    make_pool: PoolFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    pool, runs = make_pool("resume", "done", "done")
    monkeypatch.setattr(pool.progress, "update", lambda _, completed, at: shown.append(at))
    assert pool.run(runs[:1], {}) == 0
    assert "step 1 · loss 3.0000" in shown
    assert f"step {runs[0].steps} · loss 2.0000" in shown


def test_a_crash_is_retried_but_not_wrong_input_or_divergence(sweep: Sweep, make_pool: PoolFactory) -> None:
    pool, runs = make_pool("crash once", "diverge", "wrong input")
    assert pool.run(runs, {}) == 1
    assert [count_starts(run) for run in runs] == [2, 1, 1]
    assert last_states(sweep, runs) == ["done", "diverged", "failed"]
    diverged = read_statuses(sweep.folder / "sweep.jsonl")[runs[1].name]
    assert "loss was not finite" in diverged["reason"]
    assert "retried" in all_states(sweep)


def test_a_run_that_keeps_crashing_fails_with_its_last_line(sweep: Sweep, make_pool: PoolFactory) -> None:
    pool, runs = make_pool("crash", "succeed", "succeed")
    assert pool.run(runs, {}) == 1
    assert [count_starts(run) for run in runs] == [2, 1, 1]
    records = metric_records(sweep.folder / "sweep.jsonl")
    (failed,) = [record for record in records if record["state"] == "failed"]
    assert "boom" in failed["reason"]
    assert f"{runs[0].name}.log" in failed["reason"]
    assert [is_complete(run) for run in runs] == [False, True, True]


def test_branches_wait_for_their_trunk_and_are_skipped_if_it_fails(sweep: Sweep, make_pool: PoolFactory) -> None:
    pool, (trunk, second, third) = make_pool("wrong input", "succeed", "succeed")
    branch = replace(second, after=trunk.name)
    branch_of_finished = replace(third, after="finished before")
    runs = [trunk, branch, branch_of_finished]
    assert pool.run(runs, {"finished before": "done"}) == 1
    assert [count_starts(run) for run in runs] == [1, 0, 1]
    assert last_states(sweep, [branch]) == ["skipped"]


def test_branches_of_a_trunk_that_diverged_before_are_skipped(sweep: Sweep, make_pool: PoolFactory) -> None:
    pool, runs = make_pool("succeed", "succeed", "succeed")
    branches = [replace(run, after="trunk") for run in runs]
    assert pool.run(branches, {"trunk": "diverged"}) == 1
    assert [count_starts(run) for run in runs] == [0, 0, 0]
    assert all_states(sweep) == {"skipped"}


def test_a_request_to_stop_reaches_every_run_and_no_other_starts(sweep: Sweep, make_pool: PoolFactory) -> None:
    pool, runs = make_pool("wait", "wait", "succeed")

    def request_stop() -> None:
        deadline = time.monotonic() + 20
        while not all(count_starts(run) for run in runs[:2]) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)  # until the runs have installed their signal handlers
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=request_stop).start()
    assert pool.run(runs, {}) == STOPPED
    assert [count_starts(run) for run in runs] == [1, 1, 0]
    statuses = read_statuses(sweep.folder / "sweep.jsonl")
    assert {name: status["state"] for name, status in statuses.items()} == {
        runs[0].name: "stopped",
        runs[1].name: "stopped",
    }


def test_an_error_of_the_sweep_ends_its_runs(make_pool: PoolFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the disk of its status log is full."""
    pool, runs = make_pool("wait", "wait", "succeed")

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(pool, "_read_metrics", fail)
    with pytest.raises(OSError, match="no space"):
        pool.run(runs, {})
    assert [job.process.popen.wait(timeout=20) == 0 for job in pool.running] == [False, False]


def test_a_run_that_starts_while_a_stop_is_asked_for_is_ended(make_pool: PoolFactory) -> None:
    """The signal arrives between the start of the process and its place in the list of running ones."""
    pool, runs = make_pool("wait", "wait", "wait")
    pool.slots.stop_requested = True
    pool._start(runs[0])
    (job,) = pool.running
    assert job.process.popen.wait(timeout=20) != 0


def test_a_run_that_outlived_its_sweep_is_waited_for(make_pool: PoolFactory) -> None:
    pool, runs = make_pool("succeed", "succeed", "succeed")
    run_dir = Path(runs[0].run_dir)
    run_dir.mkdir(parents=True)
    hold_lock = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); "
        "time.sleep(2)"
    )
    holder = subprocess.Popen([sys.executable, "-c", hold_lock, str(run_dir / ".lock")], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    assert pool.run(runs, {}) == 0
    assert holder.wait() == 0
    assert [count_starts(run) for run in runs] == [1, 1, 1]


def test_slots_share_cores() -> None:
    environment = {"JAX_PLATFORMS": "cpu"}
    assert device_share(1, 2, environment, cores={0, 1, 2, 3}) == DeviceShare({}, frozenset({1, 3}))
    assert device_share(0, 1, environment, cores={0, 1, 2, 3}) == DeviceShare({}, frozenset())


def test_slots_share_gpus_or_the_memory_of_one_gpu(tmp_path: Path) -> None:
    nvidia_smi = tmp_path / "nvidia-smi"
    nvidia_smi.write_text("#!/bin/sh\necho 'GPU 0: H100'\necho 'GPU 1: H100'\n")
    nvidia_smi.chmod(0o755)
    environment = {"PATH": str(tmp_path)}
    two_gpus = DeviceShare({"CUDA_VISIBLE_DEVICES": "3,7"}, frozenset())
    assert device_share(1, 2, {**environment, "CUDA_VISIBLE_DEVICES": "2,3,5,7"}) == two_gpus
    third_of_a_gpu = DeviceShare({"CUDA_VISIBLE_DEVICES": "4", "XLA_CLIENT_MEM_FRACTION": "0.307"}, frozenset())
    assert device_share(2, 3, {**environment, "CUDA_VISIBLE_DEVICES": "4"}) == third_of_a_gpu
    listed_gpu = DeviceShare({"CUDA_VISIBLE_DEVICES": "1"}, frozenset())
    assert device_share(1, 2, environment) == listed_gpu
