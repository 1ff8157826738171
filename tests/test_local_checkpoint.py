"""States that the machines keep on their own disks (`checkpoint.local`)."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.checkpoint_config import LocalCheckpointConfig
from t5x_lite.cli import main
from t5x_lite.local_checkpoint import LocalCheckpoints, open_local_checkpoints
from t5x_lite.parallel.config import MeshConfig
from t5x_lite.parallel.mesh import make_mesh
from tests.conftest import lines
from tests.train.whole_runs import assert_same_weights, train

STATE = {"a": {"kernel": jnp.arange(12, dtype=jnp.float32).reshape(3, 4)}, "b": jnp.array([1.5, -2.0], jnp.bfloat16)}


def target_of(state: dict) -> dict:
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding), state)


def local_checkpoints(folder: Path, run_id: str = "run") -> LocalCheckpoints:
    return LocalCheckpoints(LocalCheckpointConfig(folder=str(folder), every_steps=2), run_id)


def save_steps(folder: Path, *steps: int) -> LocalCheckpoints:
    checkpoints = local_checkpoints(folder)
    for step in steps:
        state = jax.tree.map(lambda array, step=step: array + jnp.array(step, array.dtype), STATE)
        checkpoints.save(step, state, {"position": step})
    checkpoints.wait()
    return checkpoints


def test_the_newest_state_is_restored_bit_for_bit_and_two_are_kept(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, 2, 4, 6)
    assert {path.name for path in checkpoints.folder.iterdir()} == {"4.json", "4.bin", "6.json", "6.bin"}
    restored = checkpoints.restore(target_of(STATE), after=0)
    assert restored is not None
    step, state, meta = restored
    assert (step, meta) == (6, {"position": 6})
    np.testing.assert_array_equal(state["a"]["kernel"], np.arange(12).reshape(3, 4) + 6)
    assert state["b"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(state["b"], np.float32), [7.5, 4.0])
    assert checkpoints.restore(target_of(STATE), after=6) is None


def test_what_a_full_disk_or_a_killed_process_leaves_is_deleted(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, 2)
    (checkpoints.folder / "3.bin").write_bytes(b"part of a state")
    assert save_steps(tmp_path, 4).folder == checkpoints.folder
    assert {path.name for path in checkpoints.folder.iterdir()} == {"2.json", "2.bin", "4.json", "4.bin"}


@pytest.mark.parametrize("fault", ["flipped", "truncated", "no data", "no summary", "not JSON"])
def test_a_damaged_state_is_passed_over(tmp_path: Path, fault: str) -> None:
    checkpoints = save_steps(tmp_path, 2, 4)
    data = checkpoints.folder / "4.bin"
    summary = checkpoints.folder / "4.json"
    content = bytearray(data.read_bytes())
    if fault == "flipped":
        content[9] ^= 1
        data.write_bytes(content)
    elif fault == "truncated":
        os.truncate(data, len(content) - 1)
    elif fault == "not JSON":
        summary.write_text("{")
    else:
        (data if fault == "no data" else summary).unlink()
    restored = checkpoints.restore(target_of(STATE), after=0)
    assert restored is not None
    assert restored[0] == 2


def test_a_run_that_goes_on_from_an_earlier_step_keeps_its_new_states(tmp_path: Path) -> None:
    """Those of later steps, from before it fell back, must not count as the newest."""
    checkpoints = save_steps(tmp_path, 4, 6)
    checkpoints.delete_after(2)
    save_steps(tmp_path, 3)
    assert {path.name for path in checkpoints.folder.iterdir()} == {"3.json", "3.bin"}
    restored = checkpoints.restore(target_of(STATE), after=2)
    assert restored is not None
    assert restored[0] == 3


def test_a_state_of_another_model_or_of_more_processes_is_not_restored(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, 2)
    wider = {**STATE, "b": jnp.zeros(3, jnp.bfloat16)}
    assert checkpoints.restore(target_of(wider), after=0) is None
    other_type = {**STATE, "b": jnp.zeros(2, jnp.float32)}
    assert checkpoints.restore(target_of(other_type), after=0) is None
    assert checkpoints.restore(target_of({"b": STATE["b"]}), after=0) is None
    summary = checkpoints.folder / "2.json"
    summary.write_text(summary.read_text().replace('"processes":1', '"processes":2'))
    assert checkpoints.restore(target_of(STATE), after=0) is None


def test_a_run_that_begins_anew_does_not_find_the_states_of_the_one_before(tmp_path: Path) -> None:
    config = LocalCheckpointConfig(folder=str(tmp_path / "local"))
    folders = set()
    for _ in range(2):
        run = tmp_path / "run"
        run.mkdir(exist_ok=True)
        with jax.set_mesh(make_mesh(MeshConfig())):
            folders.add(open_local_checkpoints(config, str(run), run).folder)
            assert open_local_checkpoints(config, str(run), run).folder in folders
        (run / "run_id").unlink()
    assert len(folders) == 2


def test_a_run_in_a_bucket_finds_its_states_whatever_its_local_copy_is_called(tmp_path: Path) -> None:
    config = LocalCheckpointConfig(folder=str(tmp_path / "local"))
    folders = set()
    for start in ("first", "second"):
        copy = tmp_path / start
        copy.mkdir()
        (copy / "run_id").write_text("0123456789abcdef" * 2)
        with jax.set_mesh(make_mesh(MeshConfig())):
            folders.add(open_local_checkpoints(config, "gs://models/run", copy).folder)
            other_run = open_local_checkpoints(config, "gs://models/copy_of_the_run", copy).folder
        assert other_run not in folders
    assert len(folders) == 1


def test_a_state_that_cannot_be_written_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    save_steps(tmp_path, 2)
    assert "the state of step 2 is not kept" in caplog.text


def test_a_run_goes_on_from_its_local_state_and_ends_as_one_without_a_break(
    tiny_config: Path,
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The run breaks in step 11, after a checkpoint at step 8 and a local state at step 10."""
    local = [f"checkpoint.local.folder={tmp_path}/local", "checkpoint.local.every_steps=2", "checkpoint.every_steps=4"]
    with monkeypatch.context() as patch:
        patch.setattr("t5x_lite.train.profiler.Profiler.before_step", _break_in_step_11)
        assert train(tiny_config, tmp_path / "run", *local) != 0
    capfd.readouterr()
    assert train(tiny_config, tmp_path / "run", *local) == 0
    assert f"resumed from step 10 in {tmp_path}/local" in capfd.readouterr().err
    assert [record["loss"] for record in lines(tmp_path / "run")] == [record["loss"] for record in lines(tiny_run)]
    assert_same_weights(tmp_path / "run", tiny_run)
    assert not list((tmp_path / "local").glob("*/*"))  # a complete run leaves none


def _break_in_step_11(profiler: object, steps_done: int) -> None:
    if steps_done == 10:
        raise RuntimeError("broken")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("checkpoint.local={folder: 'gs://bucket/x'}", "must be on a disk of the machine"),
        ("checkpoint.local={folder: x, every_steps: 4}", "local.every_steps 4 is not below every_steps 4"),
        ("checkpoint.local={every_steps: 2}", "`checkpoint.local.folder` must be given"),
    ],
)
def test_settings_that_do_not_work_are_refused(
    override: str, message: str, tiny_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(tiny_config), override]) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_number_of_a_run_is_replaced(tmp_path: Path) -> None:
    config = LocalCheckpointConfig(folder=str(tmp_path / "local"))
    (tmp_path / "run_id").write_text("")
    with jax.set_mesh(make_mesh(MeshConfig())):
        folder = open_local_checkpoints(config, "run", tmp_path).folder
        assert open_local_checkpoints(config, "run", tmp_path).folder == folder
    assert len((tmp_path / "run_id").read_text()) == 32
