"""Flash attention (interpreted) over a mesh that cuts rows, heads and the length, against the definition.

Run by test_mesh.py in a process of its own, because the number of devices is fixed when JAX starts.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_lite.config import MeshConfig
from t5x_lite.models.attention.blocked import dense
from t5x_lite.models.attention.context import AttentionContext, AttentionInputs, AttentionSettings, TokenPositions
from t5x_lite.models.attention.flash_sharded import flash
from t5x_lite.models.attention.kinds import Dense, Local
from t5x_lite.parallel import mesh as meshes

LENGTH, HEADS = 64, 4


def main() -> None:
    """Values and gradients, that of the bias too; two documents in a row."""
    mesh = meshes.make_mesh(MeshConfig(data=2, context=2, tensor=2))
    rng = np.random.default_rng(0)
    sides = [jnp.asarray(rng.standard_normal((2, LENGTH, HEADS, 16)), jnp.float32) for _ in range(3)]
    bias = jnp.asarray(rng.standard_normal((HEADS, 2 * LENGTH)), jnp.float32)
    documents = jnp.asarray(np.arange(LENGTH)[None] >= np.array([[20], [40]]), jnp.int32) + 1
    places = TokenPositions(np.arange(LENGTH), documents)

    for pattern in (Dense(), Local(window=9)):
        for causal in (True, False):

            def loss(
                query: Any,
                key: Any,
                value: Any,
                bias: Any,
                run: Callable[[AttentionInputs], Any],
                causal: bool = causal,
            ) -> Any:
                def by_offset(offset: Any) -> Any:
                    return bias[:, offset + LENGTH - 1]

                def by_index(query: Any, key: Any) -> Any:
                    return by_offset(key[None] - query[:, None])

                view = AttentionContext(places, places, causal, bias=by_index, offset_bias=by_offset)
                out = run(AttentionInputs(query, key, value, view, AttentionSettings()))
                return jnp.sum(jnp.sin(out)), out

            def definition(call: AttentionInputs, pattern: Any = pattern) -> Any:
                return dense(call, pattern.allowed)[0]

            def kernel(call: AttentionInputs, pattern: Any = pattern) -> Any:
                return flash(call, pattern, interpret=True)

            step = jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True)
            expected = step(*sides, bias, definition)
            with jax.set_mesh(mesh):
                found = jax.jit(lambda *given, step=step, kernel=kernel: step(*given, kernel))(*sides, bias)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), found, expected)
    print("equal")


if __name__ == "__main__":
    main()
