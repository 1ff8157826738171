"""Flash attention (interpreted) over a mesh that cuts rows, heads and the length, against the definition.

Run by test_mesh.py in a process of its own, because the number of devices is fixed when JAX starts.
"""

from dataclasses import dataclass
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
PADDING = 9
DENSE = Dense()


@dataclass(frozen=True)
class Case:
    """One call of attention; queries and keys of one number are the same tokens."""

    kind: AttentionKind = DENSE
    causal: bool = True
    queries: int = 256
    keys: int = 256
    kv_heads: int = HEADS
    has_prefix: bool = False


CASES = (
    Case(),
    Case(causal=False, queries=LENGTH, keys=LENGTH),
    Case(Local(window=9), queries=LENGTH, keys=LENGTH),
    Case(Local(window=100), causal=False),
    Case(causal=False, queries=96),
    Case(causal=False, queries=57, kv_heads=1),
    Case(kv_heads=2, has_prefix=True),
    Case(Local(window=40), kv_heads=2, has_prefix=True),
)


def documents(length: int) -> jax.Array:
    """Return the documents of two rows: two and three of them, and padding."""
    position = np.arange(length)
    rows = np.stack([position >= length // 3, position * 3 // length]).astype(np.int32) + 1
    return jnp.asarray(rows * (position < length - PADDING))


def compare(case: Case, platform: str, mesh: jax.sharding.Mesh) -> None:
    """Compare values and gradients, that of the bias too, with the definition."""
    rng = np.random.default_rng(0)
    query = jnp.asarray(rng.standard_normal((2, case.queries, HEADS, 16)), jnp.float32)
    key, value = jnp.asarray(rng.standard_normal((2, 2, case.keys, case.kv_heads, 16)), jnp.float32)
    bias = jnp.asarray(rng.standard_normal((HEADS, case.queries + case.keys)), jnp.float32)
    prefix = None
    if case.has_prefix:
        prefix = jnp.asarray(np.arange(case.keys) < np.array([[case.keys // 3], [case.keys // 2]]))
    is_self_attention = case.queries == case.keys
    queries = TokenPositions(np.arange(case.queries), documents(case.queries), prefix if is_self_attention else None)
    keys = TokenPositions(np.arange(case.keys), documents(case.keys), prefix)
    is_token = (documents(case.queries) > 0)[..., None, None]

    def inputs(query: Any, key: Any, value: Any, bias: Any) -> AttentionInputs:
        def offset_bias(offset: Any) -> Any:
            return bias[:, offset + case.queries - 1]

        context = AttentionContext(
            queries, keys, case.causal, self_attention=is_self_attention, offset_bias=offset_bias
        )
        return AttentionInputs(query, key, value, context, AttentionSettings(interpret=True, platform=platform))

    def total(out: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = out * is_token
        return jnp.sum(jnp.sin(out)), out

    def definition(*arrays: Any) -> tuple[jax.Array, jax.Array]:
        return total(dense_attention(inputs(*arrays), case.kind.allowed)[0])

    def kernel(*arrays: Any) -> tuple[jax.Array, jax.Array]:
        return total(flash.attention(inputs(*arrays), case.kind))

    sides = (query, key, value, bias)
    expected = jax.grad(definition, argnums=(0, 1, 2, 3), has_aux=True)(*sides)
    with jax.set_mesh(mesh):
        computed = jax.jit(jax.grad(kernel, argnums=(0, 1, 2, 3), has_aux=True))(*sides)
    for ours, theirs in zip(jax.tree.leaves(computed), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-5, err_msg=f"{case} on {platform}")


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

    def total(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        context = AttentionContext(positions, positions, causal=True, self_attention=True)
        inputs = AttentionInputs(query, key, value, context, settings, jax.random.key(2))
        return jnp.sum(jnp.sin(flash.attention(inputs, Dense())))

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

    def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return flash.attention(AttentionInputs(query, key, value, context, settings, jax.random.key(3)), Dense())

    expected = attend(*sides)
    with jax.set_mesh(meshes.make_mesh(MeshConfig(data=2, context=2, tensor=2))):
        np.testing.assert_allclose(jax.jit(attend)(*sides), expected, atol=3e-5)


def main() -> None:
    """Compare the kernels for TPUs and for GPUs in every case."""
    check_dropout_of_shared_heads()
    check_dropout_is_the_same_on_a_mesh()
    mesh = meshes.make_mesh(MeshConfig(data=2, context=2, tensor=2))
    for case in CASES:
        for platform in ("tpu", "gpu"):
            compare(case, platform, mesh)
    print("equal")


if __name__ == "__main__":
    main()
