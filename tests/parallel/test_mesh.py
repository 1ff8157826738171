"""The mesh and the rules, on abstract devices."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from t5x_lite.config import MeshConfig
from t5x_lite.errors import UserError
from t5x_lite.parallel.mesh import make_mesh

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


def test_experts_on_a_mesh_equal_one_device() -> None:
    """Expert × fsdp × tensor × data on 8 simulated devices: loss, statistics and gradients."""
    script = Path(__file__).with_name("experts_on_a_mesh.py")
    flags = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "NPROC": "16"}
    done = subprocess.run([sys.executable, str(script)], env=flags, capture_output=True, text=True, check=False)
    assert done.stdout == "equal\n", done.stderr


def test_a_mesh_that_the_devices_do_not_fill_says_what_divides() -> None:
    with pytest.raises(
        UserError, match=r"data 2 × tensor 3 does not fill 8 devices; sizes that divide them are 1, 2, 4, 8"
    ):
        make_mesh(MeshConfig(data=2, tensor=3), devices=[jax.devices()[0]] * 8)
