"""Attention by XLA, in the form that computes the fewest query-key pairs.

From the bottom up: `dense_attention` computes all scores at once; `chunked_attention` computes them for some queries at
a time; `full_attention` cuts a causal row into steps; the shapes of `kinds/shapes.py` arrange tokens so that a few
small full attentions are left; `merge_partial_softmax` joins them. All forms give the same values.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from t5x_lite.integers import ceil_div
from t5x_lite.models.attention.context import (
    MASK_VALUE,
    ArraysByRow,
    AttentionInputs,
    ContentPairs,
    PartialAttention,
    TokenPositions,
    attention_mask,
)
from t5x_lite.models.attention.kinds import AttentionKind
from t5x_lite.models.attention.kinds.shapes import (
    AllowedPairs,
    BlockBand,
    FirstQueries,
    PairShape,
    Part,
    SharedKeys,
    StridedColumns,
)
from t5x_lite.models.attention.requirements import KernelRequirements
from t5x_lite.models.layers import dropout
from t5x_lite.models.remat import name_attention
from t5x_lite.models.sharding import constrain, num_shards


def unsupported_reason(kind: AttentionKind, required: KernelRequirements, platform: str) -> str | None:
    """Return why XLA cannot compute an attention: it computes every one."""
    return None


def attention(inputs: AttentionInputs, kind: AttentionKind) -> Float[Array, "b l h j"]:
    """Compute the parts of an attention kind, or the whole matrix of scores where that is less work."""
    out, log_sum = partial_attention(inputs, kind)
    if inputs.context.sinks is not None:
        # The share of exp(log_sum) in the sum with the sink: softmax over one score more, whose value is 0.
        share_of_keys = jax.nn.sigmoid(log_sum - inputs.context.sinks)
        out = (out * share_of_keys[..., None]).astype(out.dtype)
    if kind.allows_empty_rows or inputs.context.queries.rank is not None:
        has_keys = log_sum[..., None] > MASK_VALUE / 2
        out = jnp.where(has_keys, out, 0).astype(out.dtype)
    return name_attention(out)


def partial_attention(inputs: AttentionInputs, kind: AttentionKind) -> PartialAttention:
    """Compute attention as `attention` does, and the log-sum-exp of the scores."""
    parts = select_parts(inputs, kind)
    if parts:
        return merge_partial_softmax([SHAPES[type(part.shape)](inputs, part.shape, part.allowed) for part in parts])
    if inputs.query.shape[1] > 1:
        # Each part of a row that devices share attends to the keys of the whole row.
        axes = ("batch", None, "kv_heads", None)
        inputs = replace(inputs, key=constrain(inputs.key, *axes), value=constrain(inputs.value, *axes))
    return full_attention(inputs, kind.allowed)


def select_parts(inputs: AttentionInputs, kind: AttentionKind) -> tuple[Part, ...]:
    """Return the parts of a kind where tokens attend to their own row and the parts are fewer pairs than the square."""
    context = inputs.context
    length = inputs.query.shape[1]
    if not context.self_attention:
        return ()
    min_block = inputs.settings.limits.min_block
    parts = []
    pairs = 0
    for part in kind.parts(causal=context.strictly_causal):
        if isinstance(part.shape, BlockBand):
            blocks = ceil_div(min_block, part.shape.size)
            wide_shape = replace(part.shape, size=part.shape.size * blocks)
            parts.append(replace(part, shape=wide_shape))
        else:
            parts.append(part)
        pairs += parts[-1].shape.pairs(length)
    if pairs < length * length:
        return tuple(parts)
    return ()


def dense_attention(inputs: AttentionInputs, allowed: AllowedPairs) -> PartialAttention:
    """Compute all scores at once, the softmax in float32 (Vaswani et al. 2017, §3.2.1)."""
    b, l, h, k = inputs.query.shape
    n = inputs.key.shape[2]
    query = (inputs.query * inputs.scale).reshape(b, l, n, h // n, k)
    scores = jnp.einsum("blngk,bmnk->bnglm", query, inputs.key, preferred_element_type=jnp.float32)
    context = inputs.context
    if context.content_bias is not None:
        pairs = ContentPairs(inputs.query, inputs.key, context.queries, context.keys)
        content_bias = context.content_bias(pairs)
        scores = scores + inputs.scale * content_bias.reshape(scores.shape)
    if inputs.settings.softcap is not None:
        scores = inputs.settings.softcap * jnp.tanh(scores / inputs.settings.softcap)
    bias = context.score_bias()
    if bias is not None:
        scores = scores + bias.reshape(n, h // n, *bias.shape[1:])
    mask = attention_mask(allowed, context)
    scores = jnp.where(mask[:, None, None], scores, MASK_VALUE)
    weights = jax.nn.softmax(scores, axis=-1).astype(inputs.value.dtype)
    weights = dropout(weights, inputs.settings.dropout, inputs.dropout_key)
    out = jnp.einsum("bnglm,bmnk->blngk", weights, inputs.value).reshape(b, l, h, -1)
    log_sum = jax.nn.logsumexp(scores, axis=-1)
    return out, jnp.moveaxis(log_sum, -1, 1).reshape(b, l, h)


def chunked_attention(inputs: AttentionInputs, allowed: AllowedPairs) -> PartialAttention:
    """Compute the scores of as many queries at a time as stay under `limits.chunk_bytes`.

    The chunks are computed again in the backward pass.
    """
    b, l, h, _ = inputs.query.shape
    keys = inputs.key.shape[1]
    limits = inputs.settings.limits
    if l * keys <= limits.max_scores or l == 1:
        return dense_attention(inputs, allowed)
    size = max(limits.chunk_bytes // _score_bytes_of_device(b, h, keys), 1)
    count = ceil_div(l, size)
    positions = inputs.context.queries
    spacing = positions.traced_spacing()

    def chunks(x: Array) -> Array:
        return jnp.moveaxis(split_axis(x, 1, count, size), 1, 0)

    # The gradients of keys and values are sums over all chunks, which bfloat16 cannot hold.
    key = inputs.key.astype(jnp.float32)
    value = inputs.value.astype(jnp.float32)

    @jax.checkpoint
    def compute_chunk(chunk: tuple[Array, Array, ArraysByRow, Array | None]) -> PartialAttention:
        query, index, by_row, dropout_key = chunk
        queries = TokenPositions(index, **by_row, spacing=spacing)
        context = replace(inputs.context, queries=queries, self_attention=False, bias=None)
        chunk_inputs = replace(
            inputs,
            query=query,
            key=key.astype(inputs.key.dtype),
            value=value.astype(inputs.value.dtype),
            context=context,
            dropout_key=dropout_key,
        )
        return dense_attention(chunk_inputs, allowed)

    dropout_keys = None
    if inputs.dropout_key is not None:
        dropout_keys = jax.random.split(inputs.dropout_key, count)
    index = split_axis(jnp.asarray(positions.index), 0, count, size)
    query, by_row = jax.tree.map(chunks, (inputs.query, positions.by_row))
    out, log_sum = jax.lax.map(compute_chunk, (query, index, by_row, dropout_keys))
    out = jnp.moveaxis(out, 0, 1).reshape(b, count * size, h, -1)
    log_sum = jnp.moveaxis(log_sum, 0, 1).reshape(b, count * size, h)
    return out[:, :l], log_sum[:, :l]


def _score_bytes_of_device(rows: int, heads: int, pairs: int) -> int:
    """Return the bytes of float32 scores that a device computes, of those of all rows and heads."""
    return 4 * max(rows // num_shards("batch"), 1) * max(heads // num_shards("heads"), 1) * pairs


def full_attention(inputs: AttentionInputs, allowed: AllowedPairs) -> PartialAttention:
    """Compute all pairs; of a causal row those below the diagonal, and few above it.

    The queries of each of up to `limits.causal_steps` steps attend to the keys up to the end of the step.
    """
    context = inputs.context
    limits = inputs.settings.limits
    length = inputs.query.shape[1]
    in_steps = context.self_attention and context.strictly_causal and length >= 2 * limits.min_causal_step
    # Devices that share a row would have different steps.
    if not in_steps or num_shards("length") > 1:
        return chunked_attention(inputs, allowed)
    if length * length <= limits.max_scores:
        context = replace(context, bias=context.score_bias())
    else:
        context = replace(context, bias=None)
    size = max(ceil_div(length, limits.causal_steps), limits.min_causal_step)
    outs = []
    log_sums = []
    for start in range(0, length, size):
        queries = slice(start, start + size)
        keys = slice(0, start + size)
        dropout_key = inputs.dropout_key
        if dropout_key is not None:
            dropout_key = jax.random.fold_in(dropout_key, start)
        step = AttentionInputs(
            query=inputs.query[:, queries],
            key=inputs.key[:, keys],
            value=inputs.value[:, keys],
            context=context.select(queries, keys),
            settings=inputs.settings,
            dropout_key=dropout_key,
        )
        out, log_sum = chunked_attention(step, allowed)
        outs.append(out)
        log_sums.append(log_sum)
    return jnp.concatenate(outs, axis=1), jnp.concatenate(log_sums, axis=1)


def block_attention(inputs: AttentionInputs, shape: BlockBand, allowed: AllowedPairs) -> PartialAttention:
    """Compute each block of queries with its own block of keys and the neighbouring ones.

    Blocks become rows of a larger batch; positions count from the first neighbour of each block.
    """
    size = shape.size
    neighbours = shape.before + 1 + shape.after
    b, l = inputs.query.shape[:2]
    count = ceil_div(l, size)

    def blocks(x: Array) -> Array:
        """Return `[b * count, size, …]`."""
        return split_axis(x, 1, count, size).reshape(b * count, size, *x.shape[2:])

    def blocks_with_neighbours(x: Array) -> Array:
        """Return `[b * count, neighbours * size, …]`."""
        padding = [(0, 0), (shape.before, shape.after), *[(0, 0)] * (x.ndim - 1)]
        padded = jnp.pad(split_axis(x, 1, count, size), padding)
        around = jnp.concatenate([padded[:, n : n + count] for n in range(neighbours)], axis=2)
        return around.reshape(b * count, -1, *x.shape[2:])

    queries = jax.tree.map(blocks, inputs.context.queries.by_row)
    keys = jax.tree.map(blocks_with_neighbours, inputs.context.keys.by_row)
    context = replace(
        inputs.context,
        queries=TokenPositions(shape.before * size + np.arange(size), **queries),
        keys=TokenPositions(np.arange(neighbours * size), **keys),
        self_attention=False,
        bias=None,
    )
    in_blocks = replace(
        inputs,
        query=blocks(inputs.query),
        key=blocks_with_neighbours(inputs.key),
        value=blocks_with_neighbours(inputs.value),
        context=context,
    )
    out, log_sum = attention_in_block_chunks(in_blocks, allowed, count)
    out = out.reshape(b, count * size, *out.shape[2:])
    log_sum = log_sum.reshape(b, count * size, *log_sum.shape[2:])
    return out[:, :l], log_sum[:, :l]


def attention_in_block_chunks(inputs: AttentionInputs, allowed: AllowedPairs, count: int) -> PartialAttention:
    """Compute the `count` blocks of each row, as many at a time as fit into a cache.

    They are computed again in the backward pass. Blocks of all rows are computed together, so that devices that share
    the rows compute their own. On two CPU cores and 32,768 tokens that is 1.6 times as fast as all blocks at once.

    Args:
        inputs: the blocks as rows, `[b * count, size, …]`, those of a row after each other.
        allowed: the pairs of a block.
        count: blocks of a row.
    """
    l, h = inputs.query.shape[1:3]
    b = inputs.query.shape[0] // count
    block_bytes = _score_bytes_of_device(b, h, l * inputs.key.shape[1])
    size = max(inputs.settings.limits.cached_bytes // block_bytes, 1)
    if count <= size:
        return chunked_attention(inputs, allowed)
    queries = inputs.context.queries
    keys = inputs.context.keys
    chunk_count = ceil_div(count, size)

    def chunks(x: Array) -> Array:
        """Return `[chunks, b, size, …]`."""
        return jnp.moveaxis(split_axis(x.reshape(b, count, *x.shape[1:]), 1, chunk_count, size), 1, 0)

    def as_rows(x: Array) -> Array:
        return x.reshape(b * size, *x.shape[2:])

    def in_order(x: Array) -> Array:
        """Return `[b * count, l, …]`, the inverse of `chunks` and `as_rows`."""
        blocks = jnp.moveaxis(x.reshape(chunk_count, b, size, *x.shape[2:]), 0, 1)
        return blocks.reshape(b, chunk_count * size, *x.shape[2:])[:, :count].reshape(b * count, *x.shape[2:])

    @jax.checkpoint
    def compute_chunk(chunk: tuple[Array, Array, Array, ArraysByRow, ArraysByRow], number: Array) -> PartialAttention:
        query, key, value, query_rows, key_rows = jax.tree.map(as_rows, chunk)
        context = replace(inputs.context, queries=replace(queries, **query_rows), keys=replace(keys, **key_rows))
        dropout_key = inputs.dropout_key
        if dropout_key is not None:
            dropout_key = jax.random.fold_in(dropout_key, number)
        rows = replace(inputs, query=query, key=key, value=value, context=context, dropout_key=dropout_key)
        return chunked_attention(rows, allowed)

    arrays = (inputs.query, inputs.key, inputs.value, queries.by_row, keys.by_row)
    numbers = jnp.arange(chunk_count)
    out, log_sum = jax.lax.map(lambda chunk: compute_chunk(*chunk), (jax.tree.map(chunks, arrays), numbers))
    return in_order(out), in_order(log_sum)


def column_attention(inputs: AttentionInputs, shape: StridedColumns, allowed: AllowedPairs) -> PartialAttention:
    """Compute the tokens that are a multiple of `stride` apart as a short row of their own."""
    stride = shape.stride
    b, l = inputs.query.shape[:2]
    count = ceil_div(l, stride)

    def columns(x: Array) -> Array:
        """Return `[b * stride, count, …]`."""
        by_column = jnp.moveaxis(split_axis(x, 1, count, stride), 2, 1)
        return by_column.reshape(b * stride, count, *x.shape[2:])

    def rows(x: Array) -> Array:
        """Return `[b, l, …]`, the inverse of `columns`."""
        by_row = jnp.moveaxis(x.reshape(b, stride, count, *x.shape[2:]), 1, 2)
        return by_row.reshape(b, count * stride, *x.shape[2:])[:, :l]

    positions = TokenPositions(stride * np.arange(count), **jax.tree.map(columns, inputs.context.keys.by_row))
    in_columns = replace(
        inputs,
        query=columns(inputs.query),
        key=columns(inputs.key),
        value=columns(inputs.value),
        context=replace(inputs.context, queries=positions, keys=positions, bias=None),
    )
    out, log_sum = full_attention(in_columns, allowed)
    return rows(out), rows(log_sum)


def shared_key_attention(inputs: AttentionInputs, shape: SharedKeys, allowed: AllowedPairs) -> PartialAttention:
    """Compute all queries with a few keys."""
    indices = np.array(shape.indices(inputs.key.shape[1]), np.int32)
    context = replace(inputs.context, keys=inputs.context.keys.select(indices), self_attention=False, bias=None)
    selected = replace(inputs, key=inputs.key[:, indices], value=inputs.value[:, indices], context=context)
    return chunked_attention(selected, allowed)


def first_query_attention(inputs: AttentionInputs, shape: FirstQueries, allowed: AllowedPairs) -> PartialAttention:
    """Compute a few queries with all keys; the other queries have no keys."""
    first = slice(0, shape.count)
    queries = inputs.context.queries.select(first)
    context = replace(inputs.context, queries=queries, self_attention=False, bias=None)
    out, log_sum = chunked_attention(replace(inputs, query=inputs.query[:, first], context=context), allowed)
    others = ((0, 0), (0, inputs.query.shape[1] - shape.count), (0, 0))
    return jnp.pad(out, (*others, (0, 0))), jnp.pad(log_sum, others, constant_values=MASK_VALUE)


SHAPES: dict[type[PairShape], Callable[..., PartialAttention]] = {
    BlockBand: block_attention,
    StridedColumns: column_attention,
    SharedKeys: shared_key_attention,
    FirstQueries: first_query_attention,
}


def merge_partial_softmax(results: Sequence[PartialAttention]) -> PartialAttention:
    """Return attention over the union of disjoint sets of keys from attention over each of them."""
    if len(results) == 1:
        return results[0]
    log_sums = jnp.stack([log_sum for _, log_sum in results])
    outs = jnp.stack([out for out, _ in results])
    log_sum = jax.nn.logsumexp(log_sums, axis=0)
    weights = jnp.exp(log_sums - log_sum)[..., None]
    return jnp.sum(weights.astype(outs.dtype) * outs, axis=0), log_sum


def split_axis(x: Array, axis: int, count: int, size: int) -> Array:
    """Return `x` with one axis, padded with zeros, as two: `[…, count, size, …]`."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, count * size - x.shape[axis])
    return jnp.pad(x, padding).reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :])
