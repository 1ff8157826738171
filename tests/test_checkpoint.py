"""Checkpoints: whole or not there, never wrong, kept by the rules."""

import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x_lite.checkpoint import MANIFEST, Checkpoints, SaveError, kept
from t5x_lite.config import CheckpointConfig
from t5x_lite.errors import UserError


def state(seed: int = 0, size: int = 1000) -> dict[str, object]:
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "a": {"weight": jax.random.normal(keys[0], (size, 3))},
        "b": jax.random.normal(keys[1], (5,), jnp.bfloat16),
    }
    return {"step": jnp.int32(seed), "params": params, "opt_state": optax.adam(0.1).init(params)}


def shapes(tree: object) -> object:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def equal(one: object, other: object) -> bool:
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype and np.array_equal(np.asarray(a), np.asarray(b)), one, other)
    return jax.tree.structure(one) == jax.tree.structure(other) and all(jax.tree.leaves(same))


def saved(folder: Path, *steps: int, **config: object) -> Checkpoints:
    checkpoints = Checkpoints(folder, CheckpointConfig.model_validate({"keep": 9} | config))
    for step in steps:
        checkpoints.save(step, state(step), {"at": step}, {"eval/loss": 10.0 - step})
    checkpoints.wait()
    return checkpoints


def array_file(folder: Path, step: int) -> Path:
    files = [path for path in (folder / str(step) / "state").rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def test_what_is_saved_comes_back_to_the_bit(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 3)
    step, restored, meta = checkpoints.restore(shapes(state()))
    assert (step, meta) == (3, {"at": 3})
    assert equal(restored, state(3))


def test_a_part_can_be_read_alone(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 3)
    _, params, _ = checkpoints.restore(shapes(state()["params"]), prefix="params.")
    assert equal(params, state(3)["params"])


def test_nothing_saved_is_none_and_a_wrong_step_names_those_that_exist(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none", CheckpointConfig()).restore(shapes(state())) is None
    with pytest.raises(UserError, match=r"no checkpoint of step 5; complete ones are: 3, 4"):
        saved(tmp_path, 3, 4).restore(shapes(state()), step=5)


@pytest.mark.parametrize("seed", range(5))
def test_a_flipped_bit_is_noticed_and_the_checkpoint_before_is_used(
    tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = saved(tmp_path, 3, 4)
    victim = array_file(tmp_path, 4)
    content = bytearray(victim.read_bytes())
    place = random.Random(seed).randrange(len(content))
    content[place] ^= 1 << seed
    victim.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        step, restored, _ = checkpoints.restore(shapes(state()))
    assert step == 3
    assert equal(restored, state(3))
    assert "step 4 is damaged" in caplog.text
    assert victim.name in caplog.text
    with pytest.raises(UserError, match="step 4"):
        checkpoints.restore(shapes(state()), step=4)


@pytest.mark.parametrize("damage", ["truncate", "delete", "manifest"])
def test_other_damage_is_noticed_too(tmp_path: Path, damage: str) -> None:
    checkpoints = saved(tmp_path, 3, 4)
    victim = array_file(tmp_path, 4)
    if damage == "truncate":
        os.truncate(victim, victim.stat().st_size // 2)
    elif damage == "delete":
        victim.unlink()
    else:
        (tmp_path / "4" / MANIFEST).write_text("{")
    assert checkpoints.restore(shapes(state()))[0] == 3


def test_when_all_are_damaged_nothing_is_started_in_silence(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 3, 4)
    for step in (3, 4):
        os.truncate(array_file(tmp_path, step), 10)
    with pytest.raises(UserError, match=r"no checkpoint is whole: step 4: .*; step 3: "):
        checkpoints.restore(shapes(state()))


def test_a_folder_without_a_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 3, 4)
    (tmp_path / "4" / MANIFEST).unlink()
    assert checkpoints.steps() == [3]
    checkpoints.clean()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3"]


def test_another_model_is_refused_with_the_arrays_that_differ(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 3)
    with pytest.raises(UserError, match=r"params\.a\.weight is float32\[1000, 3\], the model has float32\[7, 3\]"):
        checkpoints.restore(shapes(state(size=7)))
    other = shapes(state())
    other["params"]["b"] = jax.ShapeDtypeStruct((5,), jnp.float32, sharding=other["params"]["b"].sharding)
    with pytest.raises(UserError, match=r"params\.b is bfloat16"):
        checkpoints.restore(other)
    del other["params"]["b"]
    with pytest.raises(UserError, match=r"params\.b is not in the model"):
        checkpoints.restore(other)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"keep": 2, "keep_best": 0}, {5, 6}),
        ({"keep": 1, "keep_best": 1}, {2, 6}),
        ({"keep": 1, "keep_best": 2}, {2, 4, 6}),
        ({"keep": 1, "keep_best": 1, "best": "highest"}, {3, 6}),
        ({"keep": 1, "keep_best": 0, "keep_every_steps": 2}, {2, 4, 6}),
        ({"keep": 1, "keep_best": 0, "keep_every_steps": 3}, {3, 6}),
    ],
)
def test_retention_by_hand(rules: dict[str, int], expected: set[int]) -> None:
    scores = {1: None, 2: 0.5, 3: 0.9, 4: 0.6, 5: None, 6: 0.8}
    assert kept(scores, CheckpointConfig.model_validate(rules)) == expected


def test_old_checkpoints_go_when_new_ones_are_whole(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2, 3, 4, 5, keep=2, keep_best=0, keep_every_steps=3)
    assert checkpoints.steps() == [3, 4, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4", "5"]


def test_due_by_steps_and_by_minutes(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(every_steps=10, every_minutes=0.0005))
    assert checkpoints.due(20)
    assert not Checkpoints(tmp_path, CheckpointConfig(every_steps=10)).due(21)
    time.sleep(0.05)
    assert checkpoints.due(21)


def test_a_failed_save_is_named_and_leaves_the_others_whole(tmp_path: Path) -> None:
    """A limit on file size makes writes fail as a full disk does, without a disk to fill."""
    checkpoints = saved(tmp_path, 3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(
            SaveError, match=r"step 4 could not be written .*GB free there.*: the disk is full; earlier checkpoints"
        ):
            checkpoints.save(4, state(4, size=100_000), {})
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(SaveError):
        checkpoints.check()
    again = Checkpoints(tmp_path, CheckpointConfig())
    again.clean()
    step, restored, _ = again.restore(shapes(state()))
    assert step == 3
    assert equal(restored, state(3))


WRITER = """
import sys, jax, jax.numpy as jnp
from pathlib import Path
from t5x_lite.checkpoint import Checkpoints
from t5x_lite.config import CheckpointConfig
checkpoints = Checkpoints(Path(sys.argv[1]), CheckpointConfig(keep=2, keep_best=0))
checkpoints.clean()
for step in range(checkpoints.steps()[-1] + 1 if checkpoints.steps() else 1, 10_000):
    checkpoints.save(step, {"x": jnp.full((300_000,), float(step))}, {"at": step})
    checkpoints.wait()
    print(step, flush=True)
"""


def test_kill_at_any_moment_loses_no_complete_checkpoint(tmp_path: Path) -> None:
    generator = random.Random(0)
    for _ in range(5):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            announced = int(process.stdout.readline())
            time.sleep(generator.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            announced = max([announced, *map(int, process.stdout.read().split())])
        checkpoints = Checkpoints(tmp_path, CheckpointConfig())
        target = {"x": jax.ShapeDtypeStruct((300_000,), jnp.float32, sharding=jnp.zeros(1).sharding)}
        step, restored, meta = checkpoints.restore(target)
        assert step >= announced
        assert meta == {"at": step}
        assert set(np.unique(restored["x"]).tolist()) == {float(step)}


def test_another_mesh_restores_the_same_values(tmp_path: Path) -> None:
    code = """
import sys, jax, jax.numpy as jnp, numpy as np
from pathlib import Path
from jax.sharding import NamedSharding, PartitionSpec as P
from t5x_lite.checkpoint import Checkpoints
from t5x_lite.config import CheckpointConfig
x = np.arange(64.0, dtype=np.float32).reshape(8, 8)
checkpoints = Checkpoints(Path(sys.argv[1]), CheckpointConfig())
auto = (jax.sharding.AxisType.Auto,) * 2
meshes = [jax.make_mesh(s, ("a", "b"), axis_types=auto, devices=jax.devices()[:s[0] * s[1]])
          for s in ((4, 1), (2, 2), (1, 1))]
places = [NamedSharding(mesh, P("a", "b")) for mesh in meshes]
checkpoints.save(1, {"x": jax.device_put(x, places[0])}, {})
checkpoints.wait()
for place in places:
    _, found, _ = checkpoints.restore({"x": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=place)})
    assert found["x"].sharding == place
    assert np.array_equal(found["x"], x)
"""
    flags = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=flags, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_manifest_lists_every_file(tmp_path: Path) -> None:
    saved(tmp_path, 3)
    listed = set(json.loads((tmp_path / "3" / MANIFEST).read_text())["crc32"])
    there = {str(path.relative_to(tmp_path / "3")) for path in (tmp_path / "3").rglob("*") if path.is_file()}
    assert there - listed == {MANIFEST}
