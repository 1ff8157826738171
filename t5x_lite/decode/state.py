"""The state of a batch between two decoding steps: its KV cache, and the tokens that are already present."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from t5x_lite.models.sharding import constrain
from t5x_lite.models.transformer import Cache


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeState:
    """The arrays that a decoding step reads and updates.

    Attributes:
        present: the tokens that the repetition penalty applies to.
        cache: the KV cache.
    """

    present: Bool[Array, "b v"]
    cache: Cache


def repeat_rows(cache: Cache, count: int) -> Cache:
    """Repeat every row of the cache `count` times; the copies of a row are neighbours."""

    def repeat(tree: PyTree[Array], axis: int) -> PyTree[Array]:
        return jax.tree.map(lambda array: jnp.repeat(array, count, axis), tree)

    encoder_output = cache.memory
    if encoder_output is not None:
        positions = encoder_output.places
        positions = replace(positions, segment_ids=repeat(positions.segment_ids, axis=0))
        encoder_output = replace(encoder_output, places=positions)
    return Cache(
        layers=repeat(cache.layers, axis=1),
        segment_ids=repeat(cache.segment_ids, axis=0),
        index=cache.index,
        memory=encoder_output,
        remembered=repeat(cache.remembered, axis=1),
    )


def select_beams(cache: Cache, rows: Int[Array, "b"]) -> Cache:
    """Give each row of the cache the keys and values of the row that its beam continues.

    Segments and an encoder's keys and values are left as they are: all beams of a prompt share them.
    """
    layers = jax.tree.map(lambda array: array[:, rows], cache.layers)
    return replace(cache, layers=layers)


def reshard_cache(cache: Cache) -> Cache:
    """Shard the rows of the cache over the mesh axes of the batch, and its heads over `tensor`."""

    def reshard(tree: PyTree[Array]) -> PyTree[Array]:
        return jax.tree.map(lambda array: constrain(array, "layers", "batch", "kv_heads", None, None), tree)

    return replace(cache, layers=reshard(cache.layers), remembered=reshard(cache.remembered))
