"""Several real processes over loopback: the same batches and the same losses as one process."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Int

from t5x_lite.cli import main
from t5x_lite.errors import UserError
from t5x_lite.locked_folder import lock_dir
from t5x_lite.parallel import distributed
from tests.conftest import REPOSITORY, lines
from tests.simulated_devices import simulated

FAULTY_PROCESS = Path(__file__).with_name("faulty_process.py")
SAVE_BATCHES = """
import sys
from pathlib import Path
import jax, numpy as np
from t5x_lite import config as configuration
from t5x_lite.data.pipeline import training_batches
from t5x_lite.data.vocabulary import load_or_train_tokenizer
from t5x_lite.parallel import distributed, mesh as meshes
from t5x_lite.run_data import open_run_data
config = configuration.load(sys.argv[1], sys.argv[4:])
distributed.initialize(Path(config.data.cache_dir))
mesh = meshes.make_mesh(config.mesh)
local = meshes.local_rows(mesh, 4)
with distributed.main_process_first():
    data = open_run_data(config, load_or_train_tokenizer(config.tokenizer, config.data))
start = int(sys.argv[3])
batches = training_batches(data.rows(), 4, local, start, start + 5, config.data)
tokens = np.stack([batch["tokens"] for batch in batches])
np.savez(f"{sys.argv[2]}-{jax.process_index()}.npz", rows=local, tokens=tokens)
"""

OPEN_OTHER_TEXT = """
import sys
import jax
from t5x_lite.parallel import distributed
distributed.initialize(sys.argv[1])
distributed.check_same_on_all_processes("text", "data.files: differ")
distributed.check_same_on_all_processes(f"text {jax.process_index()}", "data.files: differ")
"""


def start_processes(count: int, *arguments: object) -> list[subprocess.Popen[str]]:
    """Start `count` processes of one job."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    if count > 1:
        environment["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
        environment["JAX_NUM_PROCESSES"] = str(count)
    command = [sys.executable, *map(str, arguments)]
    processes = []
    for number in range(count):
        environment["JAX_PROCESS_ID"] = str(number)
        process = subprocess.Popen(command, env=environment, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
        processes.append(process)
    return processes


def run_processes(count: int, *arguments: object) -> None:
    """Start `count` processes of one job and wait for all."""
    for process in start_processes(count, *arguments):
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 0, errors


def start_pod_simulation(count: int, config: Path, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    """Start `bash launch/pod_sim.sh` with the environment of the tests."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = os.environ | {"T5X_LITE_READY": "1", "PATH": path, "T5X_LITE_GRACE": "10"} | environment
    command = ["bash", "launch/pod_sim.sh", str(count), str(config), *overrides]
    return subprocess.Popen(
        command, env=variables, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for_end(job: subprocess.Popen[str]) -> str:
    """Wait until a job has ended and return its output."""
    try:
        return job.communicate(timeout=240)[0]
    finally:
        job.kill()


def wait_for_step(step: int, run: Path, job: subprocess.Popen[str]) -> None:
    """Return when a run has logged that step; raise if its job ends before."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and job.poll() is None:
        with contextlib.suppress(OSError):
            if len((run / "metrics.jsonl").read_text().splitlines()) >= step:
                return
        time.sleep(0.02)
    raise AssertionError(wait_for_end(job))


def find_processes(job: subprocess.Popen[str]) -> dict[int, int]:
    """Return the operating system's process ids of a job's processes by their number in the job."""
    process_ids = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            is_child = f"\nPPid:\t{job.pid}\n" in (folder / "status").read_text()
            if is_child and "--process-id" in words:
                number = int(words[words.index("--process-id") + 1])
                process_ids[number] = int(folder.name)
    return process_ids


@pytest.mark.parametrize("packing", ["stream", pytest.param("documents", marks=pytest.mark.slow)])
def test_one_two_and_four_processes_make_the_same_global_batches(
    tiny_config: Path, tmp_path: Path, packing: str
) -> None:
    """With packed documents, the processes of each job plan the rows into a cache of their own."""

    def global_batches(count: int, start: int) -> Int[np.ndarray, "batches rows length"]:
        overrides = [f"data.packing={packing}"]
        if packing == "documents":
            overrides.append(f"data.cache_dir={tmp_path / f'cache{count}'}")
        run_processes(count, "-c", SAVE_BATCHES, tiny_config, tmp_path / str(count), start, *overrides)
        parts = [np.load(f"{tmp_path / str(count)}-{number}.npz") for number in range(count)]
        tokens = np.zeros((5, 4, 16), np.int32)
        for part in parts:
            tokens[:, part["rows"]] = part["tokens"]
        assert sorted(row for part in parts for row in part["rows"]) == [0, 1, 2, 3]
        return tokens

    expected = global_batches(1, 0)
    np.testing.assert_array_equal(global_batches(2, 0), expected)
    np.testing.assert_array_equal(global_batches(4, 3)[:2], expected[3:])


def test_processes_that_have_opened_other_text_are_named(tmp_path: Path) -> None:
    for process in start_processes(2, "-c", OPEN_OTHER_TEXT, tmp_path):
        errors = process.communicate(timeout=120)[1]
        assert process.returncode != 0
        assert "UserError: data.files: differ, in process 1 other than in process 0" in errors


@pytest.mark.slow
def test_one_two_and_four_processes_agree_across_the_border_of_a_stage(tiny_config: Path, tmp_path: Path) -> None:
    """Eight sequences of 8 tokens, then four of 16; two processes go on where four stopped, after the border."""
    stages = "data.schedule=[{name: short, seq_len: 8}, {name: long, after_steps: 6}]"
    train = ("-m", "t5x_lite", "train", tiny_config, stages, "eval.batch_size=4")
    for count in (1, 4):
        run_processes(count, *train, f"run_dir={tmp_path}/{count}")
    assert_same_curve(tmp_path / "4", tmp_path / "1")
    for folder in (tmp_path / "4/checkpoints").glob("12*"):
        shutil.rmtree(folder)
    run_processes(2, *train, f"run_dir={tmp_path}/4")
    assert_same_curve(tmp_path / "4", tmp_path / "1")


LONGER = ("train.steps=40", "eval.every_steps=20", "checkpoint.every_steps=10", "checkpoint.keep=9")


@pytest.fixture(scope="module")
def undisturbed(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process and 40 steps without any fault."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run_processes(1, "-m", "t5x_lite", "train", tiny_config, f"run_dir={folder}", *LONGER)
    return folder


def assert_same_curve(run: Path, expected: Path) -> None:
    """Check that a run has every step once, and the losses of the other run but for rounding."""
    records = lines(run)
    expected_records = lines(expected)
    assert [record["step"] for record in records] == [record["step"] for record in expected_records]
    for name in ("loss", "eval/loss"):
        losses = []
        expected_losses = []
        for record, expected_record in zip(records, expected_records, strict=True):
            if name in record and name in expected_record:
                losses.append(record[name])
                expected_losses.append(expected_record[name])
        np.testing.assert_allclose(losses, expected_losses, rtol=2e-5)


@dataclass(frozen=True)
class Stage:
    """A part of a run: so many processes train it up to a step, on a mesh, with environment variables."""

    processes: int
    steps: int
    mesh: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


TWO_PROCESSES_OF_TWO_DEVICES = Stage(
    processes=2,
    steps=7,
    mesh=("mesh.data=1", "mesh.fsdp=2", "mesh.tensor=2"),
    environment=simulated(2),
)


@pytest.mark.parametrize(
    "stages",
    [
        pytest.param((TWO_PROCESSES_OF_TWO_DEVICES, Stage(1, 12)), marks=pytest.mark.slow),
        pytest.param((Stage(4, 4), TWO_PROCESSES_OF_TWO_DEVICES, Stage(1, 10), Stage(4, 12)), marks=pytest.mark.slow),
    ],
    ids=["2-1", "4-2-1-4"],
)
def test_a_run_resumes_with_other_processes_and_on_another_mesh(
    tiny_config: Path, tmp_path: Path, stages: tuple[Stage, ...]
) -> None:
    """Four processes as data=4, two of two devices each as fsdp=2 × tensor=2, one alone, and four again."""
    constant = ("optimizer.schedule=constant", "train.allow_changed_config=true")
    run_processes(1, "-m", "t5x_lite", "train", tiny_config, f"run_dir={tmp_path}/one", *constant)
    for stage in stages:
        overrides = (f"run_dir={tmp_path}/run", f"train.steps={stage.steps}", *stage.mesh, *constant)
        job = start_pod_simulation(stage.processes, tiny_config, *overrides, **stage.environment)
        output = wait_for_end(job)
        assert job.returncode == 0, output
    assert_same_curve(tmp_path / "run", tmp_path / "one")


@pytest.mark.slow
def test_a_killed_process_is_named_and_all_start_again(tiny_config: Path, undisturbed: Path, tmp_path: Path) -> None:
    job = start_pod_simulation(2, tiny_config, f"run_dir={tmp_path}/run", *LONGER)
    wait_for_step(22, tmp_path / "run", job)
    os.kill(find_processes(job)[1], signal.SIGKILL)
    output = wait_for_end(job)
    assert job.returncode == 0, output
    assert "process 0 of 2: process 1 is gone" in output
    assert "failed with exit code 137; starting again, 2 failures left" in output
    assert re.search("resumed from step (10|20) ", output)  # the checkpoint of step 20 may not have been complete
    assert_same_curve(tmp_path / "run", undisturbed)
    assert lines(tmp_path / "run")[-1]["goodput/lost_seconds"] > 0


@pytest.mark.slow
def test_sigterm_to_one_saves_the_same_step_on_all(tiny_config: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    overrides = (f"run_dir={run}", *LONGER[:2], "checkpoint.every_steps=1000")
    job = start_pod_simulation(2, tiny_config, *overrides, T5X_LITE_PREEMPTIONS="0")
    wait_for_step(3, run, job)
    os.kill(find_processes(job)[1], signal.SIGTERM)
    output = wait_for_end(job)
    assert job.returncode == 75, output
    (saved_step,) = (int(path.name) for path in (run / "checkpoints").iterdir())
    assert saved_step == lines(run)[-1]["step"] < 40
    assert f"stopped and saved at step {saved_step}" in output
    assert "preempted, and no restarts are left" in output


@pytest.mark.slow
def test_sigterm_before_the_first_step_of_a_resumed_run_stops_it(
    tiny_config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    overrides = (f"run_dir={run}", "train.steps=1000", "checkpoint.every_steps=1000", "train.allow_changed_config=true")
    job = start_pod_simulation(2, tiny_config, *overrides, T5X_LITE_PREEMPTIONS="0")
    assert job.stdout is not None
    for line in job.stdout:
        if "continuing with changed settings" in line:
            break
    os.kill(find_processes(job)[1], signal.SIGTERM)
    output = wait_for_end(job)
    assert job.returncode == 75, output
    assert 40 < lines(run)[-1]["step"] < 1000


def test_wrong_input_is_not_tried_again(tiny_config: Path, tmp_path: Path) -> None:
    job = start_pod_simulation(2, tiny_config, f"run_dir={tmp_path}/run", "train.stpes=3")
    output = wait_for_end(job)
    assert job.returncode == 2
    assert "did you mean" in output
    assert "starting again, " not in output


def test_wrong_input_that_one_process_finds_ends_all_of_them(tiny_config: Path, tmp_path: Path) -> None:
    """The first process alone locks the run directory."""
    run = tmp_path / "run"
    with lock_dir(run, "held by the test", "run_dir"):
        first, second = start_processes(2, "-m", "t5x_lite", "train", tiny_config, f"run_dir={run}")
        errors = first.communicate(timeout=120)[1]
        assert "another process trains this run" in errors
        assert "process 1 ends with process 0" in second.communicate(timeout=120)[1]
    assert (first.returncode, second.returncode) == (2, 2)


@pytest.mark.slow
def test_a_lost_coordinator_ends_the_others_and_all_start_again(
    tiny_config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    job = start_pod_simulation(2, tiny_config, f"run_dir={tmp_path}/run", *LONGER)
    wait_for_step(22, tmp_path / "run", job)
    os.kill(find_processes(job)[0], signal.SIGKILL)
    output = wait_for_end(job)
    assert job.returncode == 0, output
    assert "process 0 ended with exit code 137" in output
    assert_same_curve(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_a_hung_process_ends_the_job_with_the_stacks_of_all(tiny_config: Path, tmp_path: Path) -> None:
    overrides = (*LONGER, "train.hang_minutes=0.1", f"run_dir={tmp_path}/run")
    first, hung = start_processes(2, FAULTY_PROCESS, "hung", 1, "train", tiny_config, *overrides)
    errors = hung.communicate(timeout=100)[1]
    assert hung.returncode != 0
    assert "Timeout (0:00:06)!" in errors
    assert "in to_global" in errors
    errors = first.communicate(timeout=30)[1]
    assert first.returncode != 0
    assert "Timeout (0:00:11)!" in errors or "process 1 is gone" in errors


@pytest.mark.slow
def test_a_slow_process_is_a_metric(tiny_config: Path, tmp_path: Path) -> None:
    overrides = ("train.health_every_steps=10", *LONGER, f"run_dir={tmp_path}/run")
    run_processes(2, FAULTY_PROCESS, "slow", 1, "train", tiny_config, *overrides)
    records = [record for record in lines(tmp_path / "run") if "straggler" in record]
    assert [record["step"] for record in records] == [10, 20, 30, 40]
    assert {record["straggler_process"] for record in records[1:]} == {1}
    assert min(record["straggler"] for record in records[1:]) > 1.5
    assert records[1]["straggler_seconds"] > 0.15


@pytest.mark.slow
def test_killed_processes_go_on_from_their_disks_or_without_one_of_these_from_the_checkpoint(
    tiny_config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Both are killed after step 18, with states of steps 12 and 16; and again after step 35, with that of step 32."""
    run = tmp_path / "run"
    settings = ("checkpoint.every_steps=30", f"checkpoint.local.folder={tmp_path}/local")
    train = ("train", tiny_config, *LONGER, *settings, "checkpoint.local.every_steps=4", f"run_dir={run}")

    def kill_after(step: int) -> str:
        processes = start_processes(2, FAULTY_PROCESS, "slow", 1, *train)
        wait_for_step(step, run, processes[0])
        for process in processes:
            process.kill()
        return processes[0].communicate()[1]

    kill_after(18)
    assert "resumed from step 16 in " + str(tmp_path / "local") in kill_after(35)
    (folder,) = (tmp_path / "local").glob("*/process-1")
    assert (folder / "32.json").is_file()
    shutil.rmtree(folder)
    first, second = start_processes(2, "-m", "t5x_lite", *train)
    errors = first.communicate(timeout=120)[1]
    second.communicate(timeout=120)
    assert (first.returncode, second.returncode) == (0, 0)
    assert f"resumed from step 30 in {run}" in errors
    assert_same_curve(run, undisturbed)


@pytest.mark.slow
def test_a_checkpoint_folder_that_vanishes_is_created_again(
    tiny_config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    job = start_pod_simulation(2, tiny_config, f"run_dir={tmp_path}/run", *LONGER)
    wait_for_step(23, tmp_path / "run", job)
    while not (checkpoints / "20" / "manifest.json").is_file():
        time.sleep(0.02)
    shutil.rmtree(checkpoints)
    output = wait_for_end(job)
    assert job.returncode == 0, output
    assert {path.name for path in checkpoints.iterdir()} == {"30", "40"}
    assert_same_curve(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_a_checkpoint_folder_that_cannot_be_written_ends_all_processes(tiny_config: Path, tmp_path: Path) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    job = start_pod_simulation(2, tiny_config, f"run_dir={tmp_path}/run", *LONGER)
    wait_for_step(23, tmp_path / "run", job)
    shutil.move(checkpoints, tmp_path / "elsewhere")
    checkpoints.write_text("not a folder")
    output = wait_for_end(job)
    assert job.returncode == 2, output
    assert "the checkpoint of step 30 could not be written" in output


def test_the_three_options_of_a_process_belong_together(tiny_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tiny_config), "--coordinator", "127.0.0.1:1", "--num-processes", "2"]) == 2
    assert "belong together" in capsys.readouterr().err
    words = ["--coordinator", "localhost", "--num-processes", "1", "--process-id", "0"]
    assert main(["train", str(tiny_config), *words]) == 2
    assert "--coordinator localhost: is not HOST:PORT" in capsys.readouterr().err


def test_a_task_of_slurm_that_srun_has_not_started_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a batch script with --ntasks=2, Slurm sets these variables for a program that srun does not start."""
    for name, value in {"JOB_ID": "7", "NTASKS": "2", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(UserError, match="SLURM_NTASKS is 2, and srun has not started this process"):
        distributed.initialize("cache")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "JAX_COORDINATOR_ADDRESS is set, and JAX_NUM_PROCESSES is not; set both, or neither"),
        ({"JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"}, "JAX_NUM_PROCESSES=two is not a number"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID 2: of 2 processes"),
        ({"JAX_COORDINATOR_ADDRESS": "host"}, "JAX_COORDINATOR_ADDRESS host: is not HOST:PORT"),
    ],
)
def test_numbers_of_processes_that_are_none_are_refused(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        distributed.initialize("cache")
