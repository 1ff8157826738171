"""Splash attention (interpreted) of rows that four devices share, in order and dealt out, against the definition.

Run by test_mesh.py in a process of its own, because the number of devices is fixed when JAX starts.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.models.attention import splash
from t5x_lite.models.attention.blocked import dense_attention
from t5x_lite.models.attention.context import AttentionContext, AttentionInputs, AttentionSettings, TokenPositions
from t5x_lite.models.attention.kernels import zigzag_order
from t5x_lite.models.attention.kinds import AttentionKind, Dense, Local, Strided
from t5x_lite.parallel import mesh as meshes
from t5x_lite.parallel.config import MeshConfig

LENGTH = 1024
CONTEXT = 4


def compare(kind: AttentionKind, mesh: jax.sharding.Mesh) -> None:
    """Compare values and gradients; there are two documents in the row."""
    rng = np.random.default_rng(0)
    sides = [jnp.asarray(rng.standard_normal((1, LENGTH, 2, 64)), jnp.float32) for _ in range(3)]
    documents = jnp.asarray(np.arange(LENGTH)[None] >= 300, jnp.int32) + 1

    def inputs(order: np.ndarray, query: Any, key: Any, value: Any) -> AttentionInputs:
        positions = TokenPositions(order, documents[:, order])
        context = AttentionContext(positions, positions, causal=True, self_attention=True)
        settings = AttentionSettings(interpret=True)
        return AttentionInputs(query[:, order], key[:, order], value[:, order], context, settings)

    def definition(*sides: Any) -> tuple[jax.Array, jax.Array]:
        out, _ = dense_attention(inputs(np.arange(LENGTH), *sides), kind.allowed)
        return jnp.sum(jnp.sin(out)), out

    expected = jax.grad(definition, argnums=(0, 1, 2), has_aux=True)(*sides)
    parts = np.arange(LENGTH).reshape(2 * CONTEXT, -1)
    for order in (np.arange(LENGTH), parts[zigzag_order(2 * CONTEXT)].reshape(-1)):

        def kernel(*sides: Any, order: np.ndarray = order) -> tuple[jax.Array, jax.Array]:
            out = splash.attention(inputs(order, *sides), kind)[:, np.argsort(order)]
            return jnp.sum(jnp.sin(out)), out

        with jax.set_mesh(mesh):
            computed = jax.jit(jax.grad(kernel, argnums=(0, 1, 2), has_aux=True))(*sides)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), computed, expected)


def main() -> None:
    """Compare dense, local and strided attention."""
    mesh = meshes.make_mesh(MeshConfig(data=1, context=CONTEXT, tensor=2))
    for kind in (Dense(), Local(window=200), Strided(stride=128, share="both")):
        compare(kind, mesh)
    print("equal")


if __name__ == "__main__":
    main()
