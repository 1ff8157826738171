"""Programs of 8 simulated devices whose exchanges are known: prints what `collectives` reads from them as JSON."""

import json
import sys
from dataclasses import asdict

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from t5x_lite.config import MeshConfig
from t5x_lite.parallel.mesh import make_mesh
from t5x_lite.planner.hlo import find_collectives

mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


def read(function: object, spec: P, shape: tuple[int, ...]) -> list[dict]:
    array = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
        text = jax.jit(function).lower(array).compile().as_text()  # type: ignore[arg-type]
    return [asdict(one) for one in find_collectives(text, dict(mesh.shape))]


def whole(x: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, P())


def summed(x: jax.Array) -> jax.Array:
    """A sum over the tensor axis, five times in a loop."""

    def one(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
        add = jax.shard_map(
            lambda y, c: jax.lax.psum(y * c, "tensor"), in_specs=(P(None, "tensor"), P()), out_specs=P()
        )
        return jnp.sin(add(x, carry)), None

    return jax.lax.scan(one, jnp.ones((16, 32)), length=5)[0]


def swapped(x: jax.Array) -> jax.Array:
    """Rows become columns over the fsdp axis."""
    return jax.lax.with_sharding_constraint(x, P(None, "fsdp"))


found = {
    "gathered over fsdp": read(whole, P("fsdp"), (64, 32)),
    "gathered over two": read(whole, P(("data", "tensor")), (64, 32)),
    "summed in a loop": read(summed, P(None, "tensor"), (16, 64)),
    "swapped": read(swapped, P("fsdp"), (64, 32)),
}
sys.stdout.write(json.dumps(found))
