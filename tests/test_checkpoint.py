"""Checkpoints are complete or absent, are never restored with wrong values, and are kept by the retention rules."""

import asyncio
import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import PyTree

from t5x_lite.checkpoint import Checkpoints, SaveError, steps_to_keep
from t5x_lite.checkpoint_config import CheckpointConfig
from t5x_lite.errors import UserError
from t5x_lite.manifest import find_damage
from t5x_lite.run_layout import MANIFEST
from tests.simulated_devices import simulated


def make_state(seed: int = 0, size: int = 1000) -> dict[str, PyTree]:
    weight_key, bias_key, _ = jax.random.split(jax.random.key(seed), 3)
    params = {
        "a": {"weight": jax.random.normal(weight_key, (size, 3))},
        "b": jax.random.normal(bias_key, (5,), jnp.bfloat16),
    }
    return {"step": jnp.int32(seed), "params": params, "opt_state": optax.adam(0.1).init(params)}


def shapes_of(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def are_equal(first: PyTree, second: PyTree) -> bool:
    if jax.tree.structure(first) != jax.tree.structure(second):
        return False
    equal_leaves = jax.tree.map(
        lambda a, b: a.dtype == b.dtype and np.array_equal(np.asarray(a), np.asarray(b)), first, second
    )
    return all(jax.tree.leaves(equal_leaves))


def save_steps(folder: Path | str, *steps: int, **settings: object) -> Checkpoints:
    checkpoints = Checkpoints(folder, CheckpointConfig.model_validate({"keep": 9} | settings))
    for step in steps:
        checkpoints.save(step, make_state(step), {"at": step}, {"eval/loss": 10.0 - step})
    checkpoints.wait()
    return checkpoints


def largest_array_file(folder: Path, step: int) -> Path:
    files = [path for path in (folder / str(step) / "state").rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def test_restored_values_equal_the_saved_ones_bitwise(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, 3)
    step, restored, meta = checkpoints.restore(shapes_of(make_state()))
    assert (step, meta) == (3, {"at": 3})
    assert are_equal(restored, make_state(3))


def test_a_part_of_the_state_can_be_restored_alone(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, 3)
    _, params, _ = checkpoints.restore(shapes_of(make_state()["params"]), prefix="params.")
    assert are_equal(params, make_state(3)["params"])


def test_an_empty_folder_restores_none_and_a_missing_step_lists_the_existing_ones(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none", CheckpointConfig()).restore(shapes_of(make_state())) is None
    with pytest.raises(UserError, match=r"no checkpoint of step 5; complete ones are: 3, 4"):
        save_steps(tmp_path, 3, 4).restore(shapes_of(make_state()), step=5)


@pytest.mark.parametrize("seed", range(5))
def test_a_flipped_bit_is_noticed_and_the_checkpoint_before_is_used(
    tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = save_steps(tmp_path, 3, 4)
    damaged_file = largest_array_file(tmp_path, 4)
    content = bytearray(damaged_file.read_bytes())
    position = random.Random(seed).randrange(len(content))
    content[position] ^= 1 << seed
    damaged_file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        step, restored, _ = checkpoints.restore(shapes_of(make_state()))
    assert step == 3
    assert are_equal(restored, make_state(3))
    assert "step 4 is damaged" in caplog.text
    assert damaged_file.name in caplog.text
    with pytest.raises(UserError, match="step 4"):
        checkpoints.restore(shapes_of(make_state()), step=4)


@pytest.mark.parametrize("damage", ["truncate", "delete", "manifest"])
def test_other_damage_is_noticed_too(tmp_path: Path, damage: str) -> None:
    checkpoints = save_steps(tmp_path, 3, 4)
    damaged_file = largest_array_file(tmp_path, 4)
    if damage == "truncate":
        os.truncate(damaged_file, damaged_file.stat().st_size // 2)
    elif damage == "delete":
        damaged_file.unlink()
    else:
        (tmp_path / "4" / MANIFEST).write_text("{")
    assert checkpoints.restore(shapes_of(make_state()))[0] == 3


@pytest.mark.parametrize("crc32", [{}, None, 3, {"state": 1}, "partial"])
def test_a_manifest_without_the_checksum_of_every_file_is_damaged(tmp_path: Path, crc32: object) -> None:
    checkpoints = save_steps(tmp_path, 3, 4)
    path = tmp_path / "4" / MANIFEST
    manifest = json.loads(path.read_text())
    if crc32 == "partial":
        manifest["crc32"].pop(str(largest_array_file(tmp_path, 4).relative_to(tmp_path / "4")))
    else:
        manifest["crc32"] = crc32
    path.write_text(json.dumps(manifest))
    assert checkpoints.restore(shapes_of(make_state()))[0] == 3
    for content in ("[]", "null", "[" * 100_000):
        path.write_text(content)
        assert checkpoints.restore(shapes_of(make_state()))[0] == 3


@pytest.mark.parametrize("name", ["²", "٣", "1_0", "-1", "3.tmp"])
def test_folders_that_are_not_named_by_a_step_are_left_out(tmp_path: Path, name: str) -> None:
    checkpoints = save_steps(tmp_path, 3)
    (tmp_path / name).mkdir()
    (tmp_path / name / MANIFEST).write_text("{}")
    assert checkpoints.steps() == [3]


def test_an_error_is_raised_if_all_checkpoints_are_damaged(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, 3, 4)
    for step in (3, 4):
        os.truncate(largest_array_file(tmp_path, step), 10)
    with pytest.raises(UserError, match=r"no checkpoint is intact: step 4: .*; step 3: "):
        checkpoints.restore(shapes_of(make_state()))


def test_a_damaged_step_that_was_asked_for_is_named_beside_the_others(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, 3, 4)
    os.truncate(largest_array_file(tmp_path, 4), 10)
    with pytest.raises(UserError, match=r"the checkpoint of step 4: .*; other complete ones are: 3$"):
        checkpoints.restore(shapes_of(make_state()), step=4)


def test_a_checkpoint_that_is_deleted_while_it_is_read_is_replaced_by_a_newer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = save_steps(tmp_path, 3)

    def verify_late(path: Path) -> str | None:
        damage = find_damage(path)
        if path.name == "3":
            save_steps(tmp_path, 4)
            shutil.rmtree(tmp_path / "3")
        return damage

    monkeypatch.setattr("t5x_lite.checkpoint.find_damage", verify_late)
    assert checkpoints.restore(shapes_of(make_state()))[0] == 4


def test_a_folder_without_a_manifest_does_not_count_and_is_cleaned(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, 3, 4)
    (tmp_path / "4" / MANIFEST).unlink()
    assert checkpoints.steps() == [3]
    checkpoints.clean()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3"]


def test_folders_of_others_are_not_cleaned(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, 1)
    for name in ("notes", "2", "3.orbax-checkpoint-tmp-7"):
        (tmp_path / name).mkdir()
    checkpoints.clean()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "notes"]


def test_a_checkpoint_of_another_model_is_refused_with_the_arrays_that_differ(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, 3)
    with pytest.raises(UserError, match=r"params\.a\.weight is float32\[1000, 3\], the model has float32\[7, 3\]"):
        checkpoints.restore(shapes_of(make_state(size=7)))
    target = shapes_of(make_state())
    sharding = target["params"]["b"].sharding
    target["params"]["b"] = jax.ShapeDtypeStruct((5,), jnp.float32, sharding=sharding)
    with pytest.raises(UserError, match=r"params\.b is bfloat16"):
        checkpoints.restore(target)
    del target["params"]["b"]
    with pytest.raises(UserError, match=r"params\.b is not in the model"):
        checkpoints.restore(target)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"keep": 2, "keep_best": 0}, {5, 6}),
        ({"keep": 1, "keep_best": 1}, {2, 6}),
        ({"keep": 1, "keep_best": 2}, {2, 4, 6}),
        ({"keep": 1, "keep_best": 1, "best": "highest"}, {3, 6}),
        ({"keep": 1, "keep_best": 0, "keep_every_steps": 2}, {2, 4, 6}),
        ({"keep": 1, "keep_best": 0, "keep_every_steps": 3}, {3, 6}),
        ({"keep": 1, "keep_best": 0, "keep_steps": (1, 3, 7)}, {1, 3, 6}),
        ({"keep": 1, "keep_best": 0, "keep_steps": (1,), "keep_every_steps": 4}, {1, 4, 6}),
    ],
)
def test_retention_rules_keep_the_steps_expected_by_hand(rules: dict[str, object], expected: set[int]) -> None:
    scores = {1: None, 2: 0.5, 3: 0.9, 4: 0.6, 5: None, 6: 0.8}
    assert steps_to_keep(scores, CheckpointConfig.model_validate(rules)) == expected


@pytest.mark.parametrize("best", ["lowest", "highest"])
def test_of_equal_scores_the_later_step_is_kept(best: str) -> None:
    scores = {1: 0.5, 2: 0.5, 3: 0.5, 4: None}
    config = CheckpointConfig.model_validate({"keep": 1, "keep_best": 2, "best": best})
    assert steps_to_keep(scores, config) == {2, 3, 4}


def test_a_score_that_is_no_number_is_never_the_best() -> None:
    """The correlation of constant predictions is NaN, which is neither below nor above any number."""
    scores = {1: 0.5, 2: float("nan"), 3: 0.3, 4: 0.9}
    assert steps_to_keep(scores, CheckpointConfig(keep=1, keep_best=1)) == {3, 4}


def test_old_checkpoints_are_deleted_when_new_ones_are_complete(tmp_path: Path) -> None:
    checkpoints = save_steps(tmp_path, 1, 2, 3, 4, 5, keep=2, keep_best=0, keep_every_steps=3)
    assert checkpoints.steps() == [3, 4, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4", "5"]


def test_damaged_checkpoints_behind_which_a_run_goes_back_do_not_count_as_newest(tmp_path: Path) -> None:
    """With keep=1 the save of step 3 would be deleted at once, because step 4 is newer."""
    checkpoints = save_steps(tmp_path, 2, 4, keep=1, keep_best=0, keep_every_steps=2)
    largest_array_file(tmp_path, 4).write_bytes(b"")
    restored = checkpoints.restore(shapes_of(make_state()))
    assert restored is not None
    assert restored[0] == 2
    checkpoints.save(3, make_state(3), {}, {})
    checkpoints.wait()
    assert checkpoints.steps() == [2, 3, 4]
    restored = checkpoints.restore(shapes_of(make_state()))
    assert restored is not None
    assert restored[0] == 3


def test_a_save_is_due_by_steps_and_by_minutes(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(every_steps=10, every_minutes=0.0005))
    assert checkpoints.due(20)
    assert not Checkpoints(tmp_path, CheckpointConfig(every_steps=10)).due(21)
    time.sleep(0.05)
    assert checkpoints.due(21)


def test_a_failed_save_is_reported_and_leaves_earlier_checkpoints_intact(tmp_path: Path) -> None:
    """A limit on file sizes makes writes fail as a full disk does."""
    checkpoints = save_steps(tmp_path, 3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(
            SaveError, match=r"step 4 could not be written .*GB free there.*: the disk is full; earlier checkpoints"
        ):
            checkpoints.save(4, make_state(4, size=100_000), {})
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(SaveError):
        checkpoints.check()
    reopened = Checkpoints(tmp_path, CheckpointConfig())
    reopened.clean()
    step, restored, _ = reopened.restore(shapes_of(make_state()))
    assert step == 3
    assert are_equal(restored, make_state(3))


class FailsWhenDeleted:
    """An object whose deletion raises an error, which Python gives to `sys.unraisablehook`."""

    def __init__(self, fail: Callable[[], object]) -> None:
        self.fail = fail

    def __del__(self) -> None:
        self.fail()


def test_writes_that_end_after_a_failed_save_are_not_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They call a closed event loop. Other errors are reported, once however many folders were opened."""
    reported: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda details: reported.append(str(details.exc_value)))
    for _ in range(3):
        Checkpoints(tmp_path, CheckpointConfig()).close()
    loop = asyncio.new_event_loop()
    loop.close()
    FailsWhenDeleted(lambda: loop.call_soon_threadsafe(print))
    FailsWhenDeleted(lambda: int("another error"))
    assert len(reported) == 1
    assert "another error" in reported[0]


SAVE_UNTIL_KILLED = """
import sys, jax, jax.numpy as jnp
from pathlib import Path
from t5x_lite.checkpoint import Checkpoints
from t5x_lite.checkpoint_config import CheckpointConfig
checkpoints = Checkpoints(Path(sys.argv[1]), CheckpointConfig(keep=2, keep_best=0))
checkpoints.clean()
for step in range(checkpoints.steps()[-1] + 1 if checkpoints.steps() else 1, 10_000):
    checkpoints.save(step, {"x": jnp.full((300_000,), float(step))}, {"at": step})
    checkpoints.wait()
    print(step, flush=True)
"""


def test_a_kill_at_any_moment_loses_no_complete_checkpoint(tmp_path: Path) -> None:
    rng = random.Random(0)
    for _ in range(5):
        command = [sys.executable, "-c", SAVE_UNTIL_KILLED, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            saved_steps = [int(process.stdout.readline())]
            time.sleep(rng.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            saved_steps += map(int, process.stdout.read().split())
        checkpoints = Checkpoints(tmp_path, CheckpointConfig())
        target = {"x": jax.ShapeDtypeStruct((300_000,), jnp.float32, sharding=jnp.zeros(1).sharding)}
        step, restored, meta = checkpoints.restore(target)
        assert step >= max(saved_steps)
        assert meta == {"at": step}
        assert set(np.unique(restored["x"]).tolist()) == {float(step)}


RESTORE_ON_OTHER_MESHES = """
import sys, jax, jax.numpy as jnp, numpy as np
from pathlib import Path
from jax.sharding import NamedSharding, PartitionSpec as P
from t5x_lite.checkpoint import Checkpoints
from t5x_lite.checkpoint_config import CheckpointConfig
x = np.arange(64.0, dtype=np.float32).reshape(8, 8)
checkpoints = Checkpoints(Path(sys.argv[1]), CheckpointConfig())
axis_types = (jax.sharding.AxisType.Auto,) * 2
shardings = []
for shape in ((4, 1), (2, 2), (1, 1)):
    devices = jax.devices()[:shape[0] * shape[1]]
    mesh = jax.make_mesh(shape, ("a", "b"), axis_types=axis_types, devices=devices)
    shardings.append(NamedSharding(mesh, P("a", "b")))
checkpoints.save(1, {"x": jax.device_put(x, shardings[0])}, {})
checkpoints.wait()
for sharding in shardings:
    _, restored, _ = checkpoints.restore({"x": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=sharding)})
    assert restored["x"].sharding == sharding
    assert np.array_equal(restored["x"], x)
"""


def test_another_mesh_restores_the_same_values(tmp_path: Path) -> None:
    environment = simulated(4)
    command = [sys.executable, "-c", RESTORE_ON_OTHER_MESHES, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_manifest_lists_every_file(tmp_path: Path) -> None:
    save_steps(tmp_path, 3)
    checkpoint = tmp_path / "3"
    listed_files = set(json.loads((checkpoint / MANIFEST).read_text())["crc32"])
    files = {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()}
    assert files - listed_files == {MANIFEST}
