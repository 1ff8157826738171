"""Starting runs: retried, diverged, skipped, stopped, never twice; clusters by stand-ins for their programs."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from t5x_lite.errors import STOPPED, UserError
from t5x_lite.run_dir import lock_dir
from t5x_lite.sweep import config, grid, launch
from t5x_lite.sweep.points import Record
from t5x_lite.sweep.pool import Pool, share
from tests.conftest import Shell

FAKE = """
import json, os, pathlib, signal, sys, time
folder, steps, behaviour = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
folder.mkdir(parents=True, exist_ok=True)
with (folder / "started").open("a") as file:
    file.write("x")
starts = len((folder / "started").read_text())
if behaviour == "diverge":
    print("t5x-lite: step 7: loss was not finite", file=sys.stderr)
    sys.exit(3)
if behaviour == "wrong":
    sys.exit(2)
if behaviour == "crash" or (behaviour == "crash once" and starts == 1):
    print("Traceback: boom", file=sys.stderr)
    sys.exit(1)
if behaviour == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    time.sleep(30)
(folder / "metrics.jsonl").write_text(json.dumps({"step": steps, "loss": 2.0, "tokens": 9, "eval/loss": 2.1}) + "\\n")
saved = folder / "checkpoints" / str(steps)
saved.mkdir(parents=True)
(saved / "manifest.json").write_text("{}")
"""


@pytest.fixture
def sweep(tmp_path: Path, tiny_config: Path) -> config.Sweep:
    path = tmp_path / "grid.yaml"
    axes = {"rate": {"optimizer.learning_rate": [0.1, 0.2, 0.3]}}
    path.write_text(yaml.safe_dump({"config": str(tiny_config), "axes": axes, "dir": str(tmp_path / "sweep")}))
    return config.load(path, ["jobs=2", "retries=1"])


@pytest.fixture
def pool(sweep: config.Sweep, tmp_path: Path) -> Callable[..., tuple[Pool, list[grid.PlannedRun]]]:
    (tmp_path / "fake.py").write_text(FAKE)

    def make(*behaviours: str) -> tuple[Pool, list[grid.PlannedRun]]:
        runs = grid.expand(sweep)
        told = {run.name: does for run, does in zip(runs, behaviours, strict=True)}
        sweep.folder.mkdir(exist_ok=True)

        def command(run: grid.PlannedRun) -> list[str]:
            return [sys.executable, str(tmp_path / "fake.py"), run.run_dir, str(run.steps), told[run.name]]

        return Pool(sweep, Record(sweep.folder / "sweep.jsonl"), dict(os.environ), command), runs

    return make


def states(sweep: config.Sweep) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (sweep.folder / "sweep.jsonl").read_text().splitlines()]


def started(run: grid.PlannedRun) -> int:
    path = Path(run.run_dir) / "started"
    return len(path.read_text()) if path.is_file() else 0


def test_a_crash_is_retried_and_wrong_input_and_divergence_are_not(sweep: config.Sweep, pool: Any) -> None:
    own, runs = pool("crash once", "diverge", "wrong")
    assert own.run(runs, {}) == 1
    assert [started(run) for run in runs] == [2, 1, 1]
    newest = {row["run"]: row for row in states(sweep)}
    assert [newest[run.name]["state"] for run in runs] == ["done", "diverged", "failed"]
    assert "loss was not finite" in newest[runs[1].name]["reason"]
    assert "retried" in {row["state"] for row in states(sweep)}


def test_a_run_that_keeps_crashing_fails_with_its_last_words(sweep: config.Sweep, pool: Any) -> None:
    own, runs = pool("crash", "go", "go")
    assert own.run(runs, {}) == 1
    assert [started(run) for run in runs] == [2, 1, 1]
    (failed,) = [row for row in states(sweep) if row["state"] == "failed"]
    assert "boom" in failed["reason"]
    assert f"{runs[0].name}.log" in failed["reason"]
    assert [launch.complete(run) for run in runs] == [False, True, True]


def test_branches_wait_for_their_trunk_and_are_skipped_where_it_fails(sweep: config.Sweep, pool: Any) -> None:
    own, runs = pool("wrong", "go", "go")
    runs = [runs[0], replace(runs[1], after=runs[0].name), replace(runs[2], after="finished before")]
    assert own.run(runs, {"finished before": "done"}) == 1
    assert [started(run) for run in runs] == [1, 0, 1]
    assert {row["run"]: row["state"] for row in states(sweep)}[runs[1].name] == "skipped"


def test_branches_of_a_trunk_that_diverged_before_are_skipped(sweep: Any, pool: Any) -> None:
    own, runs = pool("go", "go", "go")
    assert own.run([replace(run, after="long ago") for run in runs], {"long ago": "diverged"}) == 1
    assert [started(run) for run in runs] == [0, 0, 0]
    assert {row["state"] for row in states(sweep)} == {"skipped"}


def test_what_the_table_says_is_believed_only_where_the_run_is_there(sweep: Any) -> None:
    runs = grid.expand(sweep)
    sweep.folder.mkdir()
    record = Record(sweep.folder / "sweep.jsonl")
    for run, state in zip(runs, ("done", "diverged", "failed"), strict=True):
        record.set(run.name, state)
    assert [launch._state(sweep, run, record) for run in runs] == ["new", "new", "failed"]
    Path(runs[1].run_dir).mkdir(parents=True)
    assert launch._state(sweep, runs[1], record) == "diverged"


def test_a_request_to_stop_reaches_every_run_and_starts_no_other(sweep: config.Sweep, pool: Any) -> None:
    own, runs = pool("wait", "wait", "go")

    def ask() -> None:
        until = time.monotonic() + 20
        while not all(started(run) for run in runs[:2]) and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(0.5)  # until the handler is there
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask).start()
    assert own.run(runs, {}) == STOPPED
    assert [started(run) for run in runs] == [1, 1, 0]
    newest = {row["run"]: row["state"] for row in states(sweep)}
    assert newest == {runs[0].name: "stopped", runs[1].name: "stopped"}


def test_a_run_that_outlived_its_sweep_is_waited_for(pool: Any) -> None:
    own, runs = pool("go", "go", "go")
    folder = Path(runs[0].run_dir)
    folder.mkdir(parents=True)
    hold = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); "
    holder = subprocess.Popen(
        [sys.executable, "-c", hold + "time.sleep(2)", str(folder / ".lock")], stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    assert own.run(runs, {}) == 0
    assert holder.wait() == 0
    assert [started(run) for run in runs] == [1, 1, 1]


def test_a_torn_row_is_closed_before_the_next_is_written(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    path.write_text('{"run": "a", "state": "done"}\n{"run": "b", "st')
    record = Record(path)
    record.set("b", "running")
    assert record.state("a")["state"] == "done"
    assert record.state("b")["state"] == "running"


def test_slots_share_processors_or_gpus_or_the_memory_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert share(1, 2, {"JAX_PLATFORMS": "cpu"}) == ({}, {1, 3})
    assert share(0, 1, {"JAX_PLATFORMS": "cpu"}) == ({}, set())
    monkeypatch.setattr("t5x_lite.sweep.pool.shutil.which", lambda _: "/usr/bin/nvidia-smi")
    assert share(1, 2, {"CUDA_VISIBLE_DEVICES": "2,3,5,7"}) == ({"CUDA_VISIBLE_DEVICES": "3,7"}, set())
    one = {"CUDA_VISIBLE_DEVICES": "4", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.300"}
    assert share(2, 3, {"CUDA_VISIBLE_DEVICES": "4"}) == (one, set())


def test_two_sweeps_of_one_folder_do_not_run_at_once(sweep: config.Sweep) -> None:
    with lock_dir(sweep.folder, "this test has it"), pytest.raises(UserError, match="another process runs this sweep"):
        launch.start(sweep, yes=True, environment=dict(os.environ))


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins that write down what they were given; `answers/NAME` is what they say."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "answers").mkdir()
    for name in ("sbatch", "squeue", "kubectl"):
        path = folder / name
        path.write_text(
            f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n[ "$1" = apply ] && cat >> {tmp_path}/applied\n'
            f"cat {tmp_path}/answers/{name}-$2 {tmp_path}/answers/{name} 2>/dev/null\nexit 0\n"
        )
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(launch, "estimates", lambda *_: {})
    return tmp_path


def test_slurm_gets_an_array_of_what_is_missing_once(
    sweep: config.Sweep, programs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (programs / "answers/sbatch").write_text("4711;cluster\n")
    own = config.load(programs / "grid.yaml", ["where=slurm", "jobs=2"])
    runs = grid.expand(own)
    folder = Path(runs[0].run_dir)
    (folder / "checkpoints/12").mkdir(parents=True)
    (folder / "checkpoints/12/manifest.json").write_text("{}")
    (folder / "metrics.jsonl").write_text('{"step": 12, "eval/loss": 2.0}\n')
    assert launch.start(own, yes=True, environment=dict(os.environ)) == 0
    (call,) = [line for line in (programs / "calls").read_text().splitlines() if line.startswith("sbatch")]
    assert "--array=1-2%2" in call
    assert "--gpus-per-task=1" in call
    lines = Path(call.split()[-1]).read_text().splitlines()
    assert [line.split()[0] for line in lines] == [runs[1].config] * 2
    assert f'run_dir="{runs[1].run_dir}"' in lines[0]
    # Started again while they are queued, nothing is submitted twice; when one has gone without an end, that one is.
    (programs / "answers/squeue").write_text("4711_1\n4711_2\n")
    assert launch.start(own, yes=True, environment=dict(os.environ)) == 0
    (programs / "answers/squeue").write_text("4711_1\n")
    assert launch.start(own, yes=True, environment=dict(os.environ)) == 0
    calls = [line for line in (programs / "calls").read_text().splitlines() if line.startswith("sbatch")]
    assert len(calls) == 2
    assert "--array=1-1%2" in calls[1]
    assert runs[2].run_dir in Path(calls[1].split()[-1]).read_text()


def test_branches_are_submitted_to_wait_for_their_trunks(programs: Path, tiny_config: Path) -> None:
    path = programs / "branches.yaml"
    wsd = {"optimizer.schedule": {"wsd": {"decay": 0.25}}}
    settings = {"config": str(tiny_config), "set": wsd, "axes": {"d": {"train.steps": [12, 20]}}, "branches": True}
    path.write_text(yaml.safe_dump({**settings, "dir": str(programs / "sweep"), "where": "slurm"}))
    (programs / "answers/sbatch").write_text("12\n")
    assert launch.start(config.load(path), yes=True, environment=dict(os.environ)) == 0
    first, second = [line for line in (programs / "calls").read_text().splitlines() if line.startswith("sbatch")]
    assert "dependency" not in first
    assert "--dependency=afterany:12" in second


def test_gke_gets_a_jobset_a_run_once(programs: Path) -> None:
    path = programs / "gke.yaml"
    base = launch.REPOSITORY / "configs/quickstart.yaml"
    options = ["--image=a/b:1", "--bucket=models", "--accelerator=tpu-v5p-slice", "--topology=2x2x1"]
    words = [word for option in options for word in option.split("=")]
    settings = {"config": str(base), "axes": {"s": {"train.seed": [1, 2]}}, "seeds": [0], "where": "gke"}
    settings |= {"launch": {"gke": words}, "dir": str(programs / "sweep")}
    settings["axes"] = {"rate": {"optimizer.learning_rate": [0.1, 0.2]}}
    path.write_text(yaml.safe_dump(settings))
    assert launch.start(config.load(path), yes=True, environment=dict(os.environ)) == 0
    sets = list(yaml.safe_load_all((programs / "applied").read_text().replace("apiVersion", "---\napiVersion")))
    names = [one["metadata"]["name"] for one in sets if one]
    assert names == ["gke-learning-rate0-1", "gke-learning-rate0-2"]
    arguments = sets[-1]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments[:2] == ["train", "configs/quickstart.yaml"]
    assert "optimizer.learning_rate=0.2" in arguments
    (programs / "answers/kubectl-jobset").write_text("jobset/there")
    assert launch.start(config.load(path), yes=True, environment=dict(os.environ)) == 0
    assert (programs / "calls").read_text().count("kubectl apply") == 2


@pytest.mark.slow
def test_a_sweep_runs_fits_and_says_that_nothing_is_left(tmp_path: Path, tiny_config: Path, t5x_lite: Shell) -> None:
    path = tmp_path / "tiny.yaml"
    axes = {"size": {"model.embed": [8, 16, 32]}}
    wsd = {"optimizer.schedule": {"wsd": {"decay": 0.25}}}
    settings = {"config": str(tiny_config), "axes": axes, "budgets": [1e8, 2e8, 4e8], "branches": True, "set": wsd}
    path.write_text(yaml.safe_dump({**settings, "dir": str(tmp_path / "sweep")}))
    assert t5x_lite("sweep", path).returncode == 2  # cannot ask
    done = t5x_lite("sweep", path, "--yes", "jobs=2")
    assert done.returncode == 0, done.stderr
    assert "12 of 12 runs are done" in done.stderr
    again = t5x_lite("sweep", path, "--yes")
    assert "nothing to do" in again.stderr
    said = t5x_lite("sweep", "fit", path, "--json", "--draws", "50", "--emit", tmp_path / "best.yaml")
    assert said.returncode == 0, said.stderr
    law = json.loads(said.stdout)
    assert law["points"] == 9
    assert (tmp_path / "sweep/law.png").is_file()
    assert t5x_lite("prepare", tmp_path / "best.yaml").returncode == 0
