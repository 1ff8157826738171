"""Goodput, parameters that a mesh leaves replicated, and replicas that should be equal."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jax.sharding import AbstractMesh, AxisType

from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.sharding import AXES
from t5x_lite.models.spec import model_spec
from t5x_lite.parallel.mesh import check_sharded
from t5x_lite.train.goodput import Goodput
from t5x_lite.train.metrics import truncate_metrics

CORRUPT = """
import jax, numpy as np
from t5x_lite.config import MeshConfig
from t5x_lite.errors import ReplicaMismatch
from t5x_lite.models.layers import WeightAxes
from t5x_lite.parallel.mesh import make_mesh, sharding_of
from t5x_lite.train.replicas import ReplicaCheck

mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
values = {"even": np.random.default_rng(0).standard_normal((8, 16), np.float32), "bias": np.ones(6, np.float32)}
axes = {"even": WeightAxes(("embed", "mlp"), 1), "bias": WeightAxes(("head_dim",))}
placed = {name: sharding_of(mesh, axes[name], value.shape) for name, value in values.items()}
params = {name: jax.device_put(value, placed[name]) for name, value in values.items()}
replicas = ReplicaCheck(mesh, placed)
replicas.check(7, params)
for name, device in (("even", 5), ("bias", 3)):
    parts = []
    for shard in params[name].addressable_shards:
        part = np.array(shard.data)
        if shard.device.id == device:
            part.reshape(-1).view(np.uint32)[1] ^= 1 << 9  # one bit of one number on one device
        parts.append(jax.device_put(part, shard.device))
    broken = jax.make_array_from_single_device_arrays(params[name].shape, placed[name], parts)
    try:
        replicas.check(7, {**params, name: broken})
    except ReplicaMismatch as error:
        print(error)
"""


def test_a_flipped_bit_in_one_replica_is_found_and_named() -> None:
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin"}
    done = subprocess.run([sys.executable, "-c", CORRUPT], env=flags, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    # Of two copies neither has the majority; of eight the odd one is known.
    assert "step 7" in first
    assert "differ" in first
    assert "even on cpu:" in first
    assert "bias on cpu:3;" in second


def test_parameters_that_no_axis_divides_are_refused_by_name() -> None:
    def on(**sizes: int) -> None:
        mesh = AbstractMesh(tuple(sizes.get(a, 1) for a in AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES))
        spec = model_spec(config)
        check_sharded(mesh, spec.axes, spec.shapes)  # type: ignore[arg-type]

    model: dict[str, Any] = {"layers": 1, "embed": 258, "heads": 6, "head_dim": 43, "mlp": 1032, "vocab": 1001}
    config = ModelConfig.model_validate(model)
    on(data=8)
    on(fsdp=2)
    # 258 = 2·3·43 and 1032 = 8·129: five devices divide neither width, 1001 tokens, nor 6 heads.
    with pytest.raises(UserError, match=r"would lie whole .*tokens\.weight \[1001, 258\].*fsdp divide none"):
        on(fsdp=5)
    # Six heads and 1032 channels are cut in three; the tables are not: 258 · 2025 of 258 · (2025 + 3096) and biases.
    with pytest.raises(UserError, match=r"39\.4% of the parameters .*tokens\.weight \[1001, 258\]\)"):
        on(tensor=3)


def test_goodput_is_the_share_of_steps_over_all_starts(tmp_path: Path) -> None:
    first = Goodput(tmp_path, writes=True)
    first.seconds |= {"compile": 10.0, "step": 80.0, "checkpoint": 10.0}
    assert first.metrics()["goodput"] == pytest.approx(0.8)
    again = Goodput(tmp_path, writes=True)
    again.add_lost(30.0)
    with again.measure("evaluation"):
        pass
    metrics = again.metrics()
    assert metrics["goodput"] == pytest.approx(0.5, abs=1e-4)
    assert metrics["goodput/lost_seconds"] == 30.0
    assert "compile 10.0 s" in again.summary()


def test_steps_that_come_again_are_counted_as_lost(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    records = [{"step": n, "seconds_per_step": 0.5} for n in range(1, 8)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 8, "seco')
    assert truncate_metrics(path, 4) == 1.5
    assert len(path.read_text().splitlines()) == 4
