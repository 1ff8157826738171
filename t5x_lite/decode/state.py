"""The state of a batch between two decoding steps: its KV cache, and the tokens so far."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from t5x_lite.decode.logit_rules import History
from t5x_lite.models.backbone import DecoderCache
from t5x_lite.models.sharding import constrain


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeState:
    """The arrays that a decoding step reads and updates.

    Attributes:
        history: the tokens so far; without columns if no rule reads them.
        cache: the KV cache.
    """

    history: History
    cache: DecoderCache


def repeat_rows(cache: DecoderCache, count: int) -> DecoderCache:
    """Repeat every row of the cache `count` times; the copies of a row are neighbours."""

    def repeat(tree: PyTree[Array], axis: int) -> PyTree[Array]:
        return jax.tree.map(lambda array: jnp.repeat(array, count, axis), tree)

    encoder_output = cache.encoder_output
    if encoder_output is not None:
        positions = encoder_output.positions
        positions = replace(positions, segment_ids=repeat(positions.segment_ids, axis=0))
        encoder_output = replace(encoder_output, positions=positions)
    return DecoderCache(
        layers=repeat(cache.layers, axis=1),
        segment_ids=repeat(cache.segment_ids, axis=0),
        index=cache.index,
        encoder_output=encoder_output,
        cross_kv=repeat(cache.cross_kv, axis=1),
    )


def select_beams(cache: DecoderCache, rows: Int[Array, "b"]) -> DecoderCache:
    """Give each row of the cache the keys and values, or the state, of the row that its beam continues.

    Segments and an encoder's keys and values are left as they are: all beams of a prompt share them.
    """
    layers = jax.tree.map(lambda array: array[:, rows], cache.layers)
    return replace(cache, layers=layers)


def reshard_cache(cache: DecoderCache) -> DecoderCache:
    """Shard the rows of the cache over the mesh axes of the batch, and the heads of keys and values over `tensor`."""

    def reshard_array(array: Array) -> Array:
        # Keys and values are `[layers, b, n, m, k]`; the states of other mixers are small.
        heads = ["kv_heads", None, None] if array.ndim == 5 else [None] * (array.ndim - 2)
        return constrain(array, "layers", "batch", *heads)

    def reshard(tree: PyTree[Array]) -> PyTree[Array]:
        return jax.tree.map(reshard_array, tree)

    return replace(cache, layers=reshard(cache.layers), cross_kv=reshard(cache.cross_kv))
