"""Starting a sweep: what is missing, here and on clusters, with stand-ins for the clusters' programs."""

import json
import os
from pathlib import Path

import pytest
import yaml

from t5x_lite import config as configuration
from t5x_lite.errors import UserError
from t5x_lite.locked_folder import lock_dir
from t5x_lite.sweep import launch
from t5x_lite.sweep.clusters import REPOSITORY
from t5x_lite.sweep.config import Sweep, load
from t5x_lite.sweep.grid import expand
from t5x_lite.sweep.run_points import finished_runs, read_runs
from t5x_lite.sweep.status_log import StatusLog
from tests.conftest import Shell
from tests.sweep.conftest import SweepFactory


def test_the_log_counts_only_where_the_run_directory_agrees(sweep: Sweep) -> None:
    runs = expand(sweep)
    sweep.folder.mkdir()
    log = StatusLog(sweep.folder / "sweep.jsonl")
    for run, state in zip(runs, ("done", "diverged", "failed"), strict=True):
        log.set(run.name, state)
    assert [launch.current_state(run, log) for run in runs] == ["new", "new", "failed"]
    Path(runs[1].run_dir).mkdir(parents=True)
    assert launch.current_state(runs[1], log) == "diverged"


def test_two_processes_do_not_run_one_sweep_at_once(sweep: Sweep) -> None:
    with (
        lock_dir(sweep.folder, "this test has it"),
        pytest.raises(UserError, match="another process runs this sweep"),
    ):
        launch.start(sweep, yes=True, environment=dict(os.environ))


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for the programs of clusters. They write their arguments to `calls`; `answers/NAME` is their output."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "answers").mkdir()
    for name in ("sbatch", "squeue", "kubectl"):
        program = folder / name
        program.write_text(
            f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n[ "$1" = apply ] && cat >> {tmp_path}/applied\n'
            f"cat {tmp_path}/answers/{name}-$2 {tmp_path}/answers/{name} 2>/dev/null\nexit 0\n"
        )
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path


def no_estimate(*_: object) -> dict[str, float]:
    """Estimate nothing: to measure or to model a step takes long."""
    return {}


def calls_of(cluster: Path, program: str) -> list[str]:
    return [line for line in (cluster / "calls").read_text().splitlines() if line.startswith(program)]


def test_slurm_receives_an_array_of_the_missing_runs_once(sweep: Sweep, cluster: Path) -> None:
    (cluster / "answers/sbatch").write_text("4711;cluster\n")
    slurm_sweep = load(cluster / "grid.yaml", ["where=slurm", "jobs=2"])
    runs = expand(slurm_sweep)
    finished_dir = Path(runs[0].run_dir)
    (finished_dir / "checkpoints/12").mkdir(parents=True)
    (finished_dir / "checkpoints/12/manifest.json").write_text("{}")
    (finished_dir / "metrics.jsonl").write_text('{"step": 12, "eval/loss": 2.0}\n')
    assert launch.start(slurm_sweep, yes=True, environment=dict(os.environ), estimate=no_estimate) == 0
    (call,) = calls_of(cluster, "sbatch")
    assert "--array=1-2%2" in call
    assert "--gpus-per-task=1" in call
    lines = Path(call.split()[-1]).read_text().splitlines()
    assert [line.split()[0] for line in lines] == [runs[1].config] * 2
    assert f'run_dir="{runs[1].run_dir}"' in lines[0]
    # Nothing is submitted twice while the jobs are queued. A job that has left the queue unfinished is submitted again.
    (cluster / "answers/squeue").write_text("4711_1\n4711_2\n")
    assert launch.start(slurm_sweep, yes=True, environment=dict(os.environ), estimate=no_estimate) == 0
    (cluster / "answers/squeue").write_text("4711_1\n")
    assert launch.start(slurm_sweep, yes=True, environment=dict(os.environ), estimate=no_estimate) == 0
    calls = calls_of(cluster, "sbatch")
    assert len(calls) == 2
    assert "--array=1-1%2" in calls[1]
    assert runs[2].run_dir in Path(calls[1].split()[-1]).read_text()


def test_slurm_does_not_receive_a_diverged_run_again(sweep: Sweep, cluster: Path) -> None:
    (cluster / "answers/sbatch").write_text("4711;cluster\n")
    slurm_sweep = load(cluster / "grid.yaml", ["where=slurm"])
    runs = expand(slurm_sweep)
    run_dir = Path(runs[0].run_dir)
    run_dir.mkdir(parents=True)
    (run_dir / "diverged.txt").write_text("step 9: loss was not finite\n")
    assert launch.start(slurm_sweep, yes=True, environment=dict(os.environ), estimate=no_estimate) == 0
    (call,) = calls_of(cluster, "sbatch")
    submitted = Path(call.split()[-1]).read_text()
    assert runs[0].run_dir not in submitted
    assert runs[1].run_dir in submitted


def test_a_run_without_validation_loss_is_complete_but_no_point_of_a_law(sweep: Sweep) -> None:
    runs = expand(sweep)
    launch.write_plan(sweep, runs)
    for run in runs:
        (Path(run.run_dir) / "checkpoints/12").mkdir(parents=True)
        (Path(run.run_dir) / "checkpoints/12/manifest.json").write_text("{}")
        (Path(run.run_dir) / "metrics.jsonl").write_text('{"step": 12, "reward": 0.5}\n')
    assert all(launch.is_complete(run) for run in runs)
    assert len(finished_runs(sweep.folder)[0]) == 3
    with pytest.raises(UserError, match="no run is complete and has a validation loss"):
        read_runs(sweep.folder)


def test_a_run_that_would_branch_off_before_what_its_trunk_has_kept_is_refused(make_sweep: SweepFactory) -> None:
    schedule = {"optimizer.schedule": {"wsd": {"decay": 0.25}}, "optimizer.warmup_steps": 2}
    sweep = make_sweep(axes={"length": {"train.steps": [12, 20, 40]}}, set=schedule, branches=True)
    runs = expand(sweep)
    trunk, *branches = runs

    def save(step: int) -> None:
        folder = Path(trunk.run_dir) / "checkpoints" / str(step)
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")

    launch.check_trunks(branches, runs)
    save(9)
    save(14)
    launch.check_trunks(branches, runs)
    save(30)
    launch.check_trunks([run for run in branches if run.steps != 20], runs)
    with pytest.raises(
        UserError, match=r"run steps20: branches off step 15, of which its trunk has kept no checkpoint"
    ):
        launch.check_trunks(branches, runs)


@pytest.mark.parametrize("place", ["config", "override"])
def test_a_run_is_complete_if_its_folder_of_checkpoints_has_the_last_step(
    place: str, make_sweep: SweepFactory, tiny_config: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "kept"
    axes = {"rate": {"optimizer.learning_rate": [0.1]}}
    if place == "config":
        path = tmp_path / "with_folder.yaml"
        path.write_text(yaml.safe_dump({"base": [str(tiny_config)], "checkpoint": {"folder": str(folder)}}))
        sweep = make_sweep(config=str(path), axes=axes)
    else:
        sweep = make_sweep(set={"checkpoint.folder": str(folder)}, axes=axes)
    (run,) = expand(sweep)
    Path(run.run_dir).mkdir(parents=True)
    (Path(run.run_dir) / "metrics.jsonl").write_text('{"step": 12, "eval/loss": 2.0}\n')
    assert not launch.is_complete(run)
    (folder / "12").mkdir(parents=True)
    (folder / "12/manifest.json").write_text("{}")
    assert launch.is_complete(run)


def test_a_sweep_does_not_take_runs_of_other_configs_for_its_own(make_sweep: SweepFactory) -> None:
    def start(**settings: object) -> int:
        sweep = make_sweep(axes={"steps": {"train.steps": [12]}}, **settings)
        (run,) = expand(sweep)
        config = configuration.load(run.config, run.words)
        folder = Path(run.run_dir)
        if not folder.exists():
            (folder / "checkpoints/12").mkdir(parents=True)
            (folder / "checkpoints/12/manifest.json").write_text("{}")
            (folder / "config.yaml").write_text(configuration.dump(config))
            (folder / "metrics.jsonl").write_text('{"step": 12, "eval/loss": 2.0}\n')
        return launch.start(sweep, yes=True, environment=dict(os.environ), estimate=no_estimate)

    assert start(set={"optimizer.learning_rate": 0.1}) == 0
    assert start(set={"optimizer.learning_rate": 0.1}) == 0
    with pytest.raises(UserError, match=r"another config: optimizer\.learning_rate was 0\.1, is 0\.2; give the sweep"):
        start(set={"optimizer.learning_rate": 0.2})


def test_slurm_makes_branches_wait_for_their_trunks(make_sweep: SweepFactory, cluster: Path) -> None:
    schedule = {"optimizer.schedule": {"wsd": {"decay": 0.25}}}
    axes = {"d": {"train.steps": [12, 20]}}
    sweep = make_sweep(set=schedule, axes=axes, branches=True, where="slurm")
    (cluster / "answers/sbatch").write_text("12\n")
    assert launch.start(sweep, yes=True, environment=dict(os.environ), estimate=no_estimate) == 0
    trunk_call, branch_call = calls_of(cluster, "sbatch")
    assert "dependency" not in trunk_call
    assert "--dependency=afterany:12" in branch_call


@pytest.fixture
def bucket_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The local copy of a sweep's folder in a bucket, in which no run has begun."""
    folder = tmp_path / "copy"
    folder.mkdir()
    monkeypatch.setattr("t5x_lite.sweep.config.local_path", lambda name: folder)
    monkeypatch.setattr(launch, "check_writable", lambda name: None)
    monkeypatch.setattr(launch, "read_steps", lambda run_dir: [])
    monkeypatch.setattr(launch, "has_diverged", lambda run_dir: False)
    return folder


def test_slurm_reads_the_list_of_a_sweep_in_a_bucket_from_a_folder_that_all_nodes_see(
    make_sweep: SweepFactory, cluster: Path, bucket_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cluster)
    sweep = make_sweep(
        axes={"rate": {"optimizer.learning_rate": [0.1, 0.2]}}, where="slurm", dir="gs://models/sweeps/grid"
    )
    (cluster / "answers/sbatch").write_text("4711\n")
    assert launch.start(sweep, yes=True, environment=dict(os.environ), estimate=no_estimate) == 0
    (call,) = calls_of(cluster, "sbatch")
    shared = cluster / "sweeps/grid"
    assert f"--output={shared}/%A_%a.log" in call
    list_path = Path(call.split()[-1])
    assert list_path.parent == shared
    assert 'run_dir="gs://models/sweeps/grid/runs/learning-rate0.1"' in list_path.read_text()
    assert not list(bucket_copy.glob("array-*"))


def test_gke_receives_one_jobset_per_run_once(cluster: Path, bucket_copy: Path) -> None:
    path = cluster / "gke.yaml"
    options = ["--image=a/b:1", "--bucket=models", "--accelerator=tpu-v5p-slice", "--topology=2x2x1"]
    words = [word for option in options for word in option.split("=")]
    settings = {
        "config": str(REPOSITORY / "configs/quickstart.yaml"),
        "axes": {"rate": {"optimizer.learning_rate": [0.1, 0.2]}},
        "seeds": [0],
        "where": "gke",
        "launch": {"gke": words},
        "dir": "gs://models/sweeps/gke",
    }
    path.write_text(yaml.safe_dump(settings))
    assert launch.start(load(path), yes=True, environment=dict(os.environ), estimate=no_estimate) == 0
    applied = (cluster / "applied").read_text().replace("apiVersion", "---\napiVersion")
    jobsets = [jobset for jobset in yaml.safe_load_all(applied) if jobset]
    assert [jobset["metadata"]["name"] for jobset in jobsets] == ["gke-learning-rate0-1", "gke-learning-rate0-2"]
    pod = jobsets[-1]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    arguments = pod["spec"]["containers"][0]["args"]
    assert arguments[:2] == ["train", "configs/quickstart.yaml"]
    assert "optimizer.learning_rate=0.2" in arguments
    assert 'run_dir="gs://models/sweeps/gke/runs/gke-learning-rate0-2"' in arguments
    (cluster / "answers/kubectl-jobset").write_text("jobset/there")
    assert launch.start(load(path), yes=True, environment=dict(os.environ), estimate=no_estimate) == 0
    assert len(calls_of(cluster, "kubectl apply")) == 2


@pytest.mark.slow
def test_a_sweep_runs_is_fitted_and_has_nothing_left(make_sweep: SweepFactory, tmp_path: Path, t5x_lite: Shell) -> None:
    make_sweep(
        axes={"size": {"model.embed": [8, 16, 32]}},
        budgets=[1e8, 2e8, 4e8],
        branches=True,
        set={"optimizer.schedule": {"wsd": {"decay": 0.25}}},
    )
    path = tmp_path / "grid.yaml"
    assert t5x_lite("sweep", path).returncode == 2  # there is no terminal on which to ask
    first = t5x_lite("sweep", path, "--yes", "jobs=2")
    assert first.returncode == 0, first.stderr
    assert "12 of 12 runs are done" in first.stderr
    second = t5x_lite("sweep", path, "--yes")
    assert "nothing to do" in second.stderr
    fit = t5x_lite("sweep", "fit", path, "--json", "--draws", "50", "--emit", tmp_path / "best.yaml")
    assert fit.returncode == 0, fit.stderr
    law = json.loads(fit.stdout)
    assert law["points"] == 9
    assert (tmp_path / "sweep/law.png").is_file()
    assert t5x_lite("prepare", tmp_path / "best.yaml").returncode == 0
