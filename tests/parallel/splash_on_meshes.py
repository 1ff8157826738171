"""Splash attention (interpreted) of rows that four devices share, in order and dealt out, against the definition.

Run by test_mesh.py in a process of its own, because the number of devices is fixed when JAX starts.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.config import MeshConfig
from t5x_lite.models.attention.blocked import dense
from t5x_lite.models.attention.context import AttentionContext, AttentionInputs, AttentionSettings, TokenPositions
from t5x_lite.models.attention.kernels import balanced_order
from t5x_lite.models.attention.kinds import Dense, Local, Strided
from t5x_lite.models.attention.splash import splash
from t5x_lite.parallel import mesh as meshes

LENGTH, CONTEXT = 1024, 4


def main() -> None:
    """Values and gradients; two documents in the row."""
    mesh = meshes.make_mesh(MeshConfig(data=1, context=CONTEXT, tensor=2))
    random = np.random.default_rng(0)
    sides = [jnp.asarray(random.standard_normal((1, LENGTH, 2, 64)), jnp.float32) for _ in range(3)]
    documents = jnp.asarray(np.arange(LENGTH)[None] >= 300, jnp.int32) + 1
    parts = np.arange(LENGTH).reshape(2 * CONTEXT, -1)
    for pattern in (Dense(), Local(window=200), Strided(stride=128, share="both")):

        def loss(query: Any, key: Any, value: Any, order: Any, run: Any, pattern: Any = pattern) -> Any:
            places = TokenPositions(order, documents[:, order])
            call = AttentionInputs(
                *(x[:, order] for x in (query, key, value)),
                AttentionContext(places, places, causal=True),
                AttentionSettings(),
            )
            out = run(call, pattern)[:, np.argsort(order)]
            return jnp.sum(jnp.sin(out)), out

        def wanted(call: AttentionInputs, pattern: Any) -> Any:
            return dense(call, pattern.allowed)[0]

        def found(call: AttentionInputs, pattern: Any) -> Any:
            return splash(call, pattern, interpret=True)

        grad = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)
        expected = grad(*sides, np.arange(LENGTH), wanted)
        for order in (np.arange(LENGTH), parts[balanced_order(2 * CONTEXT)].reshape(-1)):
            with jax.set_mesh(mesh):
                made = jax.jit(partial(grad, order=order, run=found))(*sides)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), made, expected)
    print("equal")


if __name__ == "__main__":
    main()
