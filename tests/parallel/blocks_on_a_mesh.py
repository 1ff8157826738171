"""Compare local attention by XLA on 8 simulated devices with its definition; print `equal` at the end.

Run by test_mesh.py in a process of its own, because the number of devices is fixed when JAX starts.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from t5x_lite.models.attention import blocked
from t5x_lite.models.attention.context import (
    AttentionContext,
    AttentionInputs,
    AttentionSettings,
    BlockLimits,
    TokenPositions,
)
from t5x_lite.models.attention.kinds import Local
from t5x_lite.models.sharding import partition_spec
from t5x_lite.parallel import mesh as meshes
from t5x_lite.parallel.config import MeshConfig

ROWS, LENGTH, HEADS, HEAD_DIM = 8, 64, 4, 8
WINDOW = 5


def local_attention(query: Array, key: Array, value: Array, slope: Array) -> Float[Array, "b l h k"]:
    """Compute blocks of 16 tokens, at most two of each row at a time, with a bias of slope · offset."""
    positions = TokenPositions(np.arange(LENGTH), jnp.ones((ROWS, LENGTH), int))
    context = AttentionContext(
        queries=positions,
        keys=positions,
        causal=False,
        self_attention=True,
        offset_bias=lambda offset: slope[:, None, None] * offset,
    )
    two_blocks_of_a_device = 2 * 4 * 16 * 48 * (ROWS // 4) * (HEADS // 2)
    limits = BlockLimits(min_block=16, cached_bytes=two_blocks_of_a_device)
    inputs = AttentionInputs(query, key, value, context, AttentionSettings(limits=limits))
    return blocked.attention(inputs, Local(window=WINDOW))


def definition(query: np.ndarray, key: np.ndarray, value: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Compute all scores and hide those outside of the window."""
    offset = np.arange(LENGTH)[None, :] - np.arange(LENGTH)[:, None]
    scores = np.einsum("blhk,bmhk->bhlm", query, key) / np.sqrt(HEAD_DIM) + slope[:, None, None] * offset
    weights = np.where(abs(offset) < WINDOW, np.exp(scores), 0)
    return np.einsum("bhlm,bmhk->blhk", weights / weights.sum(-1, keepdims=True), value)


def main() -> None:
    """Compare the two; a loop over the rows of all devices would gather them in every iteration."""
    rng = np.random.default_rng(0)
    query, key, value = rng.normal(size=(3, ROWS, LENGTH, HEADS, HEAD_DIM)).astype(np.float32)
    slope = rng.normal(size=HEADS).astype(np.float32) / 8
    mesh = meshes.make_mesh(MeshConfig.model_validate({"data": 2, "fsdp": 2, "tensor": 2}))
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, partition_spec(mesh.shape, ("batch", None, "heads", None), query.shape))
        arrays = [jax.device_put(array, sharding) for array in (query, key, value)]
        compiled = jax.jit(local_attention).lower(*arrays, slope).compile()
        result = np.asarray(compiled(*arrays, slope))
    np.testing.assert_allclose(result, definition(query, key, value, slope), atol=2e-6)
    text = compiled.as_text()
    assert text is not None
    assert " while(" in text, "all blocks are computed at once"
    assert "all-gather" not in text, "rows are gathered"
    sys.stdout.write("equal\n")


if __name__ == "__main__":
    main()
