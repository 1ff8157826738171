"""The mesh and the rules, on abstract devices."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from t5x_lite.config import MeshConfig, RunConfig
from t5x_lite.errors import UserError
from t5x_lite.models.attention.kernels import balanced_order
from t5x_lite.parallel.mesh import make_mesh
from tests.conftest import REPOSITORY

RULES = """
import jax
from jax.sharding import PartitionSpec as P
from t5x_lite.config import MeshConfig
from t5x_lite.models.layers import Axes
from t5x_lite.parallel.mesh import local_rows, make_mesh, sharding_of

mesh = make_mesh(MeshConfig(data=2, fsdp=-1, tensor=2))
assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2, "expert": 1, "context": 1, "pipeline": 1}
cases = {
    ((("embed", "mlp"), 1), (8, 16)): P(("fsdp",), ("tensor",)),
    ((("embed", "mlp"), 1), (3, 8, 16)): P(None, ("fsdp",), ("tensor",)),
    ((("embed", "mlp"), 1), (7, 16)): P(None, ("tensor",)),
    ((("vocab", "embed"), 0), (10, 8)): P(("tensor",), ("fsdp",)),
    ((("embed",), 0), (8,)): P(("fsdp",)),
}
for (axes, shape), expected in cases.items():
    found = sharding_of(mesh, Axes(*axes), shape).spec
    assert tuple(found) == tuple(expected), (axes, shape, found)
assert local_rows(mesh, 8).tolist() == list(range(8))
"""


def test_weights_are_sharded_by_the_one_table() -> None:
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin"}
    done = subprocess.run([sys.executable, "-c", RULES], env=flags, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_experts_on_a_mesh_equal_one_device() -> None:
    """Expert × fsdp × tensor × data on 8 simulated devices: loss, statistics and gradients."""
    script = Path(__file__).with_name("experts_on_a_mesh.py")
    flags = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "NPROC": "16"}
    done = subprocess.run([sys.executable, str(script)], env=flags, capture_output=True, text=True, check=False)
    assert done.stdout == "equal\n", done.stderr


def run_on_eight(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path, flags = Path(__file__).with_name(script), {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    more = {"NPROC": "16", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(path), *arguments]
    return subprocess.run(command, env=os.environ | flags | more, capture_output=True, text=True, check=False)


FAMILIES = ("decoder", "encoder_decoder", "encoder", "experts")


@pytest.mark.parametrize(
    ("family", "extent"),
    [("decoder", "one"), *(pytest.param(one, "all", marks=pytest.mark.slow) for one in FAMILIES)],
)
def test_every_mesh_gives_the_loss_curve_of_one_device(family: str, extent: str) -> None:
    """Ten steps in float32, each loss to 1e-5: each axis alone and combinations of them, 9 or 12 meshes a family."""
    done = run_on_eight("curves_on_meshes.py", family, extent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") >= (1 if extent == "one" else 9)


@pytest.mark.slow
def test_splash_attention_of_a_row_that_devices_share_equals_the_definition() -> None:
    done = run_on_eight("splash_on_meshes.py")
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.slow
def test_flash_attention_of_a_mesh_equals_the_definition() -> None:
    done = run_on_eight("flash_on_meshes.py")
    assert done.stdout == "equal\n", done.stderr


def test_parts_of_a_causal_row_are_dealt_from_both_ends() -> None:
    """Four devices, eight parts: 0 and 7, 1 and 6, 2 and 5, 3 and 4; each pair sees as much as any other."""
    assert balanced_order(8).tolist() == [0, 7, 1, 6, 2, 5, 3, 4]


@pytest.mark.parametrize(
    ("model", "mesh", "message"),
    [
        ({"layers": 3}, {"pipeline": 2}, "mesh.pipeline 2 cannot cut model.layers 3, 3 repeats of the pattern"),
        ({"layers": 4, "shared_layers": True}, {"pipeline": 2}, "one layer for all"),
        ({"layers": 4, "feedforward": {"moe": {"dispatch": "dropless"}}}, {"pipeline": 2}, "take dispatch=capacity"),
        ({"layers": 4}, {"expert": 2}, "no experts to shard"),
        ({"layers": 4}, {"tensor": -1, "fsdp": -1}, "one at most is -1"),
    ],
)
def test_meshes_that_a_model_cannot_have_are_refused_in_the_config(
    model: dict[str, Any], mesh: dict[str, int], message: str
) -> None:
    sizes = {"embed": 16, "heads": 2, **model}
    train = {"steps": 1, "batch_size": 4, "seq_len": 8}
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate({"model": sizes, "mesh": mesh, "train": train})


def test_a_mesh_that_the_devices_do_not_fill_says_what_divides() -> None:
    with pytest.raises(
        UserError, match=r"data 2 × tensor 3 does not fill 8 devices; sizes that divide them are 1, 2, 4, 8"
    ):
        make_mesh(MeshConfig(data=2, tensor=3), devices=[jax.devices()[0]] * 8)
