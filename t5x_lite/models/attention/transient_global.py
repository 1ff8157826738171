"""Transient global attention: a window of keys, and sums of blocks that are computed anew in every layer.

Guo et al. 2022, "LongT5", §3.2.2.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from t5x_lite.models.attention import blocked
from t5x_lite.models.attention.cache import KVCache
from t5x_lite.models.attention.context import (
    AttentionContext,
    AttentionInputs,
    AttentionSettings,
    PartialAttention,
    TokenPositions,
)
from t5x_lite.models.attention.flash_tiles import diagonal_tiles
from t5x_lite.models.attention.kinds import TransientGlobal
from t5x_lite.models.attention.kinds.shapes import BooleanArray, PositionArray
from t5x_lite.models.attention.layer import Attention
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layers import Norm
from t5x_lite.models.remat import name_attention
from t5x_lite.models.sharding import map_batch_shards, map_rows


@dataclass(frozen=True)
class DocumentBlocks:
    """The blocks of the documents of each row. Places that a row does not use are at its end, in segment 0.

    Attributes:
        of_tokens: the block of each token, `[b, l]`; `count` for tokens without one.
        segment_ids: the document of each block, `[b, count]`.
    """

    of_tokens: Int[Array, "b l"]
    segment_ids: Int[Array, "b g"]


def document_blocks(segment_ids: Int[Array, "b l"], size: int) -> DocumentBlocks:
    """Return the blocks of `size` tokens of each document; tokens after its last whole block belong to that one.

    Args:
        segment_ids: the document of each token, 0 for padding. The tokens of a document follow each other.
        size: tokens of a block.
    """
    length = segment_ids.shape[1]
    count = length // size

    def blocks_of_row(segments: Int[Array, "l"]) -> tuple[Int[Array, "l"], Int[Array, "g"]]:
        index = jnp.arange(length)
        is_first = jnp.concatenate([jnp.ones(1, bool), segments[1:] != segments[:-1]])
        start = jax.lax.cummax(jnp.where(is_first, index, 0))
        place = index - start
        is_last_of_block = (place % size == size - 1) & (segments > 0)
        blocks_so_far = jnp.cumsum(is_last_of_block)
        blocks_before_document = (blocks_so_far - is_last_of_block)[start]
        last_token = jnp.concatenate([is_first[1:], jnp.ones(1, bool)])
        end = jax.lax.cummin(jnp.where(last_token, index, length), reverse=True)
        last_block = blocks_so_far[end] - 1
        block = jnp.minimum(blocks_before_document + place // size, last_block)
        has_block = (segments > 0) & (last_block >= blocks_before_document)
        block = jnp.where(has_block, block, count)
        block_segments = jnp.zeros(count + 1, segments.dtype).at[block].set(segments)[:count]
        return block, block_segments

    return DocumentBlocks(*jax.vmap(blocks_of_row)(segment_ids))


def _allow_all(query: PositionArray, key: PositionArray) -> BooleanArray:
    return abs(query - key) >= 0


class TransientGlobalAttention(Attention):
    """Attention to a window of the row and to the global tokens of the query's document.

    Attributes:
        global_norm: the norm of the sums.
    """

    def __init__(self, config: ModelConfig, kind: TransientGlobal, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, kind, rngs=rngs)
        self.block = kind.block
        self.global_norm = Norm(config.norm, ("embed", config.embed))

    def __call__(
        self,
        x: Float[Array, "b l d"],
        source: KVCache,
        context: AttentionContext,
        dropout_key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b l d"]:
        """Attend from `x` to the keys and values of `x`, and to the sums of its blocks."""
        local_key = global_key = None
        if dropout_key is not None:
            local_key, global_key = jax.random.split(dropout_key)
        query = self.queries(x, context)
        local = AttentionInputs(query, source.key, source.value, context, self.settings, local_key)
        results = [blocked.partial_attention(local, self.kind)]
        if x.shape[1] >= self.block:
            results.append(self._attend_to_blocks(x, query, context, global_key))
        out, _ = blocked.merge_partial_softmax(results)
        return self.project_heads(name_attention(out), x)

    def _attend_to_blocks(
        self,
        x: Float[Array, "b l d"],
        query: Float[Array, "b l h k"],
        context: AttentionContext,
        dropout_key: PRNGKeyArray | None,
    ) -> PartialAttention:
        """Attend to the global tokens, row by row: the offsets to them differ from row to row."""
        rows, length = x.shape[:2]
        count = length // self.block
        blocks, sums = map_rows(partial(_sum_blocks, size=self.block), (x, context.queries.segment_ids))
        global_states = self.global_norm(sums)
        key = self.key(global_states)
        if self.key_norm is not None:
            key = self.key_norm(key)
        value = self.value(global_states)
        bias = None
        if context.global_bias is not None:
            bias = context.global_bias(jnp.arange(1 - count, count + 1))
        dropout_keys = None
        if dropout_key is not None:
            dropout_keys = jax.random.split(dropout_key, rows)
        row_arrays = (query, key, value, blocks, context.queries.segment_ids, dropout_keys)
        attend = partial(_attend_to_global_tokens, settings=self.settings)
        return map_batch_shards(attend, row_arrays, bias)


def _sum_blocks(
    rows: tuple[Float[Array, "b l d"], Int[Array, "b l"]], size: int
) -> tuple[DocumentBlocks, Float[Array, "b g d"]]:
    """Return the blocks of `size` tokens of states and their segments, and the sum of the states of each block."""
    states, segment_ids = rows
    count = states.shape[1] // size
    blocks = document_blocks(segment_ids, size)

    def sum_row(states: Float[Array, "l d"], block: Int[Array, "l"]) -> Float[Array, "g d"]:
        return jax.ops.segment_sum(states, block, count + 1)[:count]

    # Sums of many states lose less in float32.
    sums = jax.vmap(sum_row)(states.astype(jnp.float32), blocks.of_tokens)
    return blocks, sums.astype(states.dtype)


def _attend_to_global_tokens(
    rows: tuple[Array, Array, Array, DocumentBlocks, Array, Array | None],
    bias: Float[Array, "h offsets"] | None,
    settings: AttentionSettings,
) -> PartialAttention:
    """Attend row by row from queries to the keys and values of the global tokens.

    Args:
        rows: queries, keys, values, blocks, segments of the queries, and dropout keys of the rows of a device.
        bias: of each offset in blocks, from 1 - count to count.
        settings: settings of the attention.
    """
    limits = settings.limits
    chunk_bytes = limits.chunk_bytes // rows[0].shape[0]
    settings = replace(settings, limits=replace(limits, chunk_bytes=chunk_bytes))
    offset_bias = None
    if bias is not None:
        block_bias = diagonal_tiles(bias, bias.shape[1] // 2)[:, 0]
        offset_bias = partial(_bias_of_queries, block_bias)

    def attend_row(
        query: Array, key: Array, value: Array, row: DocumentBlocks, segment_ids: Array, dropout_key: Array | None
    ) -> PartialAttention:
        context = AttentionContext(
            queries=TokenPositions(row.of_tokens, segment_ids[None]),
            keys=TokenPositions(jnp.arange(len(key)), row.segment_ids[None]),
            causal=False,
            offset_bias=offset_bias,
        )
        inputs = AttentionInputs(query[None], key[None], value[None], context, settings, dropout_key)
        out, log_sum = blocked.chunked_attention(inputs, _allow_all)
        return out[0], log_sum[0]

    return jax.vmap(attend_row)(*rows)


def _bias_of_queries(block_bias: Float[Array, "h g g"], offset: Int[Array, "l g"]) -> Float[Array, "h l g"]:
    """Return the rows of the queries' blocks; TPUs copy a row many times faster than they look up its offsets.

    A token without a block, which attends to no global token, has the last row.

    Args:
        block_bias: the bias of each block of queries to the global token of each block.
        offset: from the block of each query to every global token, of which the first is that of block 0.
    """
    block = -offset[:, 0]
    return block_bias[:, jnp.minimum(block, block_bias.shape[1] - 1)]


jax.tree_util.register_dataclass(DocumentBlocks)
