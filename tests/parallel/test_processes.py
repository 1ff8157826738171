"""Several real processes over loopback: the same batches and the same losses as one."""

import os
import socket
import subprocess
import sys
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
from t5x_lite.data.tokenizer import obtain
from t5x_lite.parallel import distributed, mesh as meshes
from t5x_lite.train.setup import open_data
config = configuration.load(sys.argv[1])
distributed.initialize(Path(config.data.cache_dir))
mesh = meshes.make_mesh(config.mesh)
local = meshes.local_rows(mesh, 4)
with distributed.first_process_first():
    data = open_data(config, obtain(config))
start = int(sys.argv[3])
found = [batch["tokens"] for batch in training_batches(data.rows(), 4, local, start, start + 5, config.data)]
np.savez(f"{sys.argv[2]}-{jax.process_index()}.npz", rows=local, tokens=np.stack(found))
"""


def run_together(count: int, *arguments: object) -> None:
    """Start `count` processes of one job and wait for all."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    job = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(count)}
    command = [sys.executable, *map(str, arguments)]
    processes = [
        subprocess.Popen(
            command,
            env=os.environ | (job if count > 1 else {}) | {"JAX_PROCESS_ID": str(number)},
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    for process in processes:
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 0, errors


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


@pytest.mark.parametrize("count", [2])
def test_processes_train_evaluate_save_and_resume_as_one_would(
    tiny_run: Path, tiny_config: Path, tmp_path: Path, count: int
) -> None:
    python = Path(sys.executable).parent
    here = os.environ | {"T5X_LITE_READY": "1", "PATH": f"{python}:{os.environ['PATH']}"}
    command = ["bash", "launch/pod_sim.sh", str(count), str(tiny_config), f"run_dir={tmp_path}/run"]
    done = subprocess.run(command, env=here, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    for name in ("loss", "eval/loss"):
        expected, found = ([line[name] for line in lines(run) if name in line] for run in (tiny_run, tmp_path / "run"))
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    more = ["train.steps=16", "train.allow_changed_config=true"]
    run_together(1, "-m", "t5x_lite", "train", tiny_config, f"run_dir={tmp_path}/run", *more)
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(1, 17))


def test_a_process_that_fails_ends_the_job_with_its_exit_code(tiny_config: Path, tmp_path: Path) -> None:
    python = Path(sys.executable).parent
    here = os.environ | {"T5X_LITE_READY": "1", "PATH": f"{python}:{os.environ['PATH']}"}
    command = ["bash", "launch/pod_sim.sh", "2", str(tiny_config), f"run_dir={tmp_path}/run", "train.stpes=3"]
    done = subprocess.run(command, env=here, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 2
    assert "did you mean" in done.stderr


def test_the_three_flags_of_a_process_belong_together(tiny_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tiny_config), "--coordinator", "127.0.0.1:1", "--num-processes", "2"]) == 2
    assert "belong together" in capsys.readouterr().err
