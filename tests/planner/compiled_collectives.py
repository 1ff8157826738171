"""Compile programs for 8 simulated devices whose collectives are known; print what `find_collectives` reads as JSON.

Run by test_hlo.py in a process of its own, because the number of devices is fixed when JAX starts.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from t5x_lite.parallel.config import MeshConfig
from t5x_lite.parallel.mesh import make_mesh
from t5x_lite.planner.hlo import find_collectives


def read_collectives(
    mesh: Mesh, function: Callable[[jax.Array], jax.Array], spec: P, shape: tuple[int, ...]
) -> list[dict[str, object]]:
    """Compile a function of one sharded array and return its collectives."""
    array = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
        text = jax.jit(function).lower(array).compile().as_text()
    assert text is not None
    return [asdict(collective) for collective in find_collectives(text, dict(mesh.shape))]


def replicate(x: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, P())


def sum_in_a_loop(x: jax.Array) -> jax.Array:
    """Sum over the tensor axis, five times in a loop."""

    def body(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
        scaled_sum = jax.shard_map(
            lambda shard, scale: jax.lax.psum(shard * scale, "tensor"),
            in_specs=(P(None, "tensor"), P()),
            out_specs=P(),
        )
        return jnp.sin(scaled_sum(x, carry)), None

    return jax.lax.scan(body, jnp.ones((16, 32)), length=5)[0]


def swap_axes(x: jax.Array) -> jax.Array:
    """Move the sharding over fsdp from rows to columns."""
    return jax.lax.with_sharding_constraint(x, P(None, "fsdp"))


def main() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    collectives = {
        "gathered over fsdp": read_collectives(mesh, replicate, P("fsdp"), (64, 32)),
        "gathered over data and tensor": read_collectives(mesh, replicate, P(("data", "tensor")), (64, 32)),
        "summed in a loop": read_collectives(mesh, sum_in_a_loop, P(None, "tensor"), (16, 64)),
        "swapped": read_collectives(mesh, swap_axes, P("fsdp"), (64, 32)),
    }
    sys.stdout.write(json.dumps(collectives))


if __name__ == "__main__":
    main()
