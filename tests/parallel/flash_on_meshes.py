"""Flash attention (interpreted) over a mesh that cuts rows, heads and the length, against the definition.

Run by test_mesh.py in a process of its own, because the number of devices is fixed when JAX starts.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.models.attention import flash
from t5x_lite.models.attention.blocked import dense_attention
from t5x_lite.models.attention.context import AttentionContext, AttentionInputs, AttentionSettings, TokenPositions
from t5x_lite.models.attention.kinds import AttentionKind, Dense, Local
from t5x_lite.parallel import mesh as meshes
from t5x_lite.parallel.config import MeshConfig

LENGTH = 64
HEADS = 4


def compare(kind: AttentionKind, mesh: jax.sharding.Mesh, *, causal: bool) -> None:
    """Compare values and gradients, that of the bias too; there are two documents in each row."""
    rng = np.random.default_rng(0)
    sides = [jnp.asarray(rng.standard_normal((2, LENGTH, HEADS, 16)), jnp.float32) for _ in range(3)]
    bias = jnp.asarray(rng.standard_normal((HEADS, 2 * LENGTH)), jnp.float32)
    documents = jnp.asarray(np.arange(LENGTH)[None] >= np.array([[20], [40]]), jnp.int32) + 1
    positions = TokenPositions(np.arange(LENGTH), documents)

    def inputs(query: Any, key: Any, value: Any, bias: Any) -> AttentionInputs:
        def offset_bias(offset: Any) -> Any:
            return bias[:, offset + LENGTH - 1]

        context = AttentionContext(positions, positions, causal, self_attention=True, offset_bias=offset_bias)
        return AttentionInputs(query, key, value, context, AttentionSettings(interpret=True))

    def total(out: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.sum(jnp.sin(out)), out

    def definition(*arrays: Any) -> tuple[jax.Array, jax.Array]:
        return total(dense_attention(inputs(*arrays), kind.allowed)[0])

    def kernel(*arrays: Any) -> tuple[jax.Array, jax.Array]:
        return total(flash.attention(inputs(*arrays), kind))

    expected = jax.grad(definition, argnums=(0, 1, 2, 3), has_aux=True)(*sides, bias)
    with jax.set_mesh(mesh):
        computed = jax.jit(jax.grad(kernel, argnums=(0, 1, 2, 3), has_aux=True))(*sides, bias)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), computed, expected)


def check_dropout_of_shared_heads() -> None:
    """Compare the gradient of dropout with differences, where `tensor` does not divide the one key head.

    All devices then compute all heads, and must drop the same weights.
    """
    rng = np.random.default_rng(1)
    heads = (HEADS, 1, 1)
    sides = [jnp.asarray(rng.standard_normal((2, LENGTH, count, 16)), jnp.float32) for count in heads]
    direction = jnp.asarray(rng.standard_normal(sides[2].shape), jnp.float32)
    positions = TokenPositions(np.arange(LENGTH), jnp.ones((2, LENGTH), jnp.int32))
    settings = AttentionSettings(interpret=True, dropout=0.3)

    def total(*arrays: Any) -> jax.Array:
        context = AttentionContext(positions, positions, causal=True, self_attention=True)
        return jnp.sum(
            jnp.sin(flash.attention(AttentionInputs(*arrays, context, settings, jax.random.key(2)), Dense()))
        )

    mesh = meshes.make_mesh(MeshConfig(data=2, context=2, tensor=2))
    step = 1e-2
    with jax.set_mesh(mesh):
        value = jax.jit(total)
        slope = jnp.vdot(jax.jit(jax.grad(total, argnums=2))(*sides), direction)
        higher = value(*sides[:2], sides[2] + step * direction)
        lower = value(*sides[:2], sides[2] - step * direction)
    np.testing.assert_allclose(slope, (higher - lower) / (2 * step), rtol=5e-3)


def check_dropout_is_the_same_on_a_mesh() -> None:
    """Compare attention with dropout on a mesh that cuts rows, heads and the length with that on one device."""
    rng = np.random.default_rng(2)
    sides = [jnp.asarray(rng.standard_normal((4, LENGTH, HEADS, 16)), jnp.float32) for _ in range(3)]
    positions = TokenPositions(np.arange(LENGTH), jnp.ones((4, LENGTH), jnp.int32))
    context = AttentionContext(positions, positions, causal=True, self_attention=True)
    settings = AttentionSettings(interpret=True, dropout=0.3)

    def attend(*arrays: Any) -> jax.Array:
        return flash.attention(AttentionInputs(*arrays, context, settings, jax.random.key(3)), Dense())

    expected = attend(*sides)
    with jax.set_mesh(meshes.make_mesh(MeshConfig(data=2, context=2, tensor=2))):
        np.testing.assert_allclose(jax.jit(attend)(*sides), expected, atol=3e-5)


def main() -> None:
    """Compare dense and local attention, causal and not."""
    check_dropout_of_shared_heads()
    check_dropout_is_the_same_on_a_mesh()
    mesh = meshes.make_mesh(MeshConfig(data=2, context=2, tensor=2))
    for kind in (Dense(), Local(window=9)):
        compare(kind, mesh, causal=True)
        compare(kind, mesh, causal=False)
    print("equal")


if __name__ == "__main__":
    main()
