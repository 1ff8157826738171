"""Several real processes over loopback: the same batches and the same losses as one."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from t5x_lite.cli import main
from tests.conftest import REPOSITORY, lines

BATCHES = """
import sys
from pathlib import Path
import jax, numpy as np
from t5x_lite import config as configuration
from t5x_lite.data.pipeline import training_batches
from t5x_lite.data.vocabulary import load_or_train_tokenizer
from t5x_lite.parallel import distributed, mesh as meshes
from t5x_lite.train.setup import open_data
config = configuration.load(sys.argv[1])
distributed.initialize(Path(config.data.cache_dir))
mesh = meshes.make_mesh(config.mesh)
local = meshes.local_rows(mesh, 4)
with distributed.main_process_first():
    data = open_data(config, load_or_train_tokenizer(config))
start = int(sys.argv[3])
found = [batch["tokens"] for batch in training_batches(data.rows(), 4, local, start, start + 5, config.data)]
np.savez(f"{sys.argv[2]}-{jax.process_index()}.npz", rows=local, tokens=np.stack(found))
"""


def start(count: int, *arguments: object) -> list[subprocess.Popen[str]]:
    """Start `count` processes of one job."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count)}
    command = [sys.executable, *map(str, arguments)]
    return [
        subprocess.Popen(
            command,
            env=os.environ | (job if count > 1 else {}) | {"JAX_PROCESS_ID": str(number)},
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]


def run_together(count: int, *arguments: object) -> None:
    """Start `count` processes of one job and wait for all."""
    for process in start(count, *arguments):
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 0, errors


def pod_sim(count: int, config: Path, *overrides: str, **environment: str) -> subprocess.Popen[str]:
    """`bash launch/pod_sim.sh` with the environment of the tests."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    here = os.environ | {"T5X_LITE_READY": "1", "PATH": path, "T5X_LITE_GRACE": "10"} | environment
    command = ["bash", "launch/pod_sim.sh", str(count), str(config), *overrides]
    return subprocess.Popen(
        command, env=here, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended(job: subprocess.Popen[str]) -> str:
    """What a job has said, once it is over."""
    try:
        return job.communicate(timeout=240)[0]
    finally:
        job.kill()


def wait_for(step: int, run: Path, job: subprocess.Popen[str]) -> None:
    """Return when a run has done that step."""
    until = time.monotonic() + 120
    while time.monotonic() < until and job.poll() is None:
        with contextlib.suppress(OSError):
            if len((run / "metrics.jsonl").read_text().splitlines()) >= step:
                return
        time.sleep(0.02)
    raise AssertionError(ended(job))


def children(job: subprocess.Popen[str]) -> dict[int, int]:
    """Process ids of a job, by their number in it."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            if f"\nPPid:\t{job.pid}\n" in (folder / "status").read_text() and "--process-id" in words:
                found[int(words[words.index("--process-id") + 1])] = int(folder.name)
    return found


def test_one_two_and_four_processes_make_the_same_global_batches(tiny_config: Path, tmp_path: Path) -> None:
    def batches(count: int, start: int) -> np.ndarray:
        run_together(count, "-c", BATCHES, tiny_config, tmp_path / str(count), start)
        parts = [np.load(f"{tmp_path / str(count)}-{number}.npz") for number in range(count)]
        whole = np.zeros((5, 4, 16), np.int32)
        for part in parts:
            whole[:, part["rows"]] = part["tokens"]
        assert sorted(row for part in parts for row in part["rows"]) == [0, 1, 2, 3]
        return whole

    one = batches(1, 0)
    np.testing.assert_array_equal(batches(2, 0), one)
    np.testing.assert_array_equal(batches(4, 3)[:2], one[3:])


LONGER = ("train.steps=40", "eval.every_steps=20", "checkpoint.every_steps=10", "checkpoint.keep=9")


@pytest.fixture(scope="module")
def undisturbed(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, 40 steps, nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run_together(1, "-m", "t5x_lite", "train", tiny_config, f"run_dir={folder}", *LONGER)
    return folder


def assert_same_curve(run: Path, expected: Path) -> None:
    """Every step once, and the losses those of the other run but for rounding."""
    made, wanted = lines(run), lines(expected)
    assert [line["step"] for line in made] == [line["step"] for line in wanted]
    for name in ("loss", "eval/loss"):
        pairs = [
            (one[name], other[name]) for one, other in zip(made, wanted, strict=True) if name in one and name in other
        ]
        np.testing.assert_allclose(*zip(*pairs, strict=True), rtol=2e-5)


TWO_EACH = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
ON_TWO_OF_TWO = (2, 7, ("mesh.data=1", "mesh.fsdp=2", "mesh.tensor=2"), TWO_EACH)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param((ON_TWO_OF_TWO, (1, 12, (), {})), marks=pytest.mark.slow),
        pytest.param(((4, 4, (), {}), ON_TWO_OF_TWO, (1, 10, (), {}), (4, 12, (), {})), marks=pytest.mark.slow),
    ],
    ids=["2-1", "4-2-1-4"],
)
def test_a_run_goes_on_with_other_processes_and_on_another_mesh(
    tiny_config: Path, tmp_path: Path, parts: tuple[tuple[int, int, tuple[str, ...], dict[str, str]], ...]
) -> None:
    """Four processes as data=4, two of two devices each as fsdp=2 × tensor=2, one alone, and four again."""
    constant = ("optimizer.schedule=constant", "train.allow_changed_config=true")
    run_together(1, "-m", "t5x_lite", "train", tiny_config, f"run_dir={tmp_path}/one", *constant)
    for count, steps, mesh, environment in parts:
        more = (f"run_dir={tmp_path}/run", f"train.steps={steps}", *mesh, *constant)
        job = pod_sim(count, tiny_config, *more, **environment)
        said = ended(job)
        assert job.returncode == 0, said
    assert_same_curve(tmp_path / "run", tmp_path / "one")


@pytest.mark.slow
def test_a_killed_process_is_named_and_all_start_again(tiny_config: Path, undisturbed: Path, tmp_path: Path) -> None:
    job = pod_sim(2, tiny_config, f"run_dir={tmp_path}/run", *LONGER)
    wait_for(22, tmp_path / "run", job)
    os.kill(children(job)[1], signal.SIGKILL)
    said = ended(job)
    assert job.returncode == 0, said
    assert "process 0 of 2: process 1 is gone" in said
    assert "failed with exit code 137; starting again, 2 failures left" in said
    assert re.search("resumed from step (10|20) ", said)  # that of step 20 may not have been whole yet
    assert_same_curve(tmp_path / "run", undisturbed)
    assert lines(tmp_path / "run")[-1]["goodput/lost_seconds"] > 0


def test_sigterm_to_one_saves_the_same_step_on_all(tiny_config: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = pod_sim(
        2, tiny_config, f"run_dir={run}", *LONGER[:2], "checkpoint.every_steps=1000", T5X_LITE_PREEMPTIONS="0"
    )
    wait_for(3, run, job)
    os.kill(children(job)[1], signal.SIGTERM)
    said = ended(job)
    assert job.returncode == 75, said
    (saved,) = (int(path.name) for path in (run / "checkpoints").iterdir())
    assert saved == lines(run)[-1]["step"] < 40
    assert f"stopped and saved at step {saved}" in said
    assert "preempted, and no restarts are left" in said


def test_wrong_input_is_not_tried_again(tiny_config: Path, tmp_path: Path) -> None:
    job = pod_sim(2, tiny_config, f"run_dir={tmp_path}/run", "train.stpes=3")
    said = ended(job)
    assert job.returncode == 2
    assert "did you mean" in said
    assert "starting again, " not in said


@pytest.mark.slow
def test_a_lost_coordinator_ends_the_others_and_all_start_again(
    tiny_config: Path, undisturbed: Path, tmp_path: Path
) -> None:
    job = pod_sim(2, tiny_config, f"run_dir={tmp_path}/run", *LONGER)
    wait_for(22, tmp_path / "run", job)
    killed = time.monotonic()
    os.kill(children(job)[0], signal.SIGKILL)
    said = ended(job)
    assert job.returncode == 0, said
    assert "process 0 ended with exit code 137" in said
    assert time.monotonic() - killed < 120
    assert_same_curve(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_a_hung_process_ends_the_job_with_the_stacks_of_all(tiny_config: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("faulty.py")
    more = (*LONGER, "train.hang_minutes=0.1", f"run_dir={tmp_path}/run")
    first, hung = start(2, script, "hung", 1, "train", tiny_config, *more)
    errors = hung.communicate(timeout=100)[1]
    assert hung.returncode != 0
    assert "Timeout (0:00:06)!" in errors
    assert "in to_global" in errors
    errors = first.communicate(timeout=30)[1]
    assert first.returncode != 0
    assert "Timeout (0:00:11)!" in errors or "process 1 is gone" in errors


@pytest.mark.slow
def test_a_slow_process_is_a_metric(tiny_config: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("faulty.py")
    more = ("train.health_every_steps=10", *LONGER, f"run_dir={tmp_path}/run")
    run_together(2, script, "slow", 1, "train", tiny_config, *more)
    found = [line for line in lines(tmp_path / "run") if "straggler" in line]
    assert [line["step"] for line in found] == [10, 20, 30, 40]
    assert {line["straggler_process"] for line in found[1:]} == {1}
    assert min(line["straggler"] for line in found[1:]) > 1.5
    assert found[1]["straggler_seconds"] > 0.15


@pytest.mark.slow
def test_a_checkpoint_folder_that_vanishes_is_made_again(tiny_config: Path, undisturbed: Path, tmp_path: Path) -> None:
    job = pod_sim(2, tiny_config, f"run_dir={tmp_path}/run", *LONGER)
    wait_for(23, tmp_path / "run", job)
    while not (tmp_path / "run" / "checkpoints" / "20" / "manifest.json").is_file():
        time.sleep(0.02)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    said = ended(job)
    assert job.returncode == 0, said
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"30", "40"}
    assert_same_curve(tmp_path / "run", undisturbed)


@pytest.mark.slow
def test_a_checkpoint_folder_that_cannot_be_written_ends_all(tiny_config: Path, tmp_path: Path) -> None:
    job = pod_sim(2, tiny_config, f"run_dir={tmp_path}/run", *LONGER)
    wait_for(23, tmp_path / "run", job)
    shutil.move(tmp_path / "run" / "checkpoints", tmp_path / "elsewhere")
    (tmp_path / "run" / "checkpoints").write_text("not a folder")
    said = ended(job)
    assert job.returncode == 2, said
    assert "the checkpoint of step 30 could not be written" in said


def test_the_three_flags_of_a_process_belong_together(tiny_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tiny_config), "--coordinator", "127.0.0.1:1", "--num-processes", "2"]) == 2
    assert "belong together" in capsys.readouterr().err
