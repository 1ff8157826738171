"""The shapes of pairs that `patterns.py` names, each computed as squares of queries and keys, and their union."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from t5x_lite.models.attention.context import (
    MASK_VALUE,
    AttentionInputs,
    PartialAttention,
    TokenPositions,
    attention_mask,
)
from t5x_lite.models.attention.kinds import Allowed, Blocks, Chosen, Columns, Dense, First
from t5x_lite.models.layers import dropout
from t5x_lite.models.sharding import shards

WHOLE_SQUARE = 2**22
"""Scores of one head above this number (2048 · 2048) are made for some queries at a time."""
CHUNK_BYTES = 64 * 2**20
"""What the scores of those queries may take, over the batch and all heads."""
CACHED_BYTES = 16 * 2**20
"""What the scores of blocks may take that are made together."""
STEPS, SMALLEST_STEP = 8, 64
"""Into how many steps the causal square of one row is cut at most, and how few queries a step may have."""


def split_axis(x: Array, axis: int, count: int, size: int) -> Array:
    """An axis, padded with zeros, as two: `[…, count, size, …]`."""
    padded = jnp.pad(x, [(0, count * size - x.shape[axis] if n == axis else 0) for n in range(x.ndim)])
    return padded.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :])


def dense(call: AttentionInputs, allowed: Allowed) -> PartialAttention:
    """All scores at once, the softmax in float32."""
    b, l, h, k = call.query.shape
    n = call.key.shape[2]
    grouped = call.scaled.reshape(b, l, n, h // n, k)
    scores = jnp.einsum("blngk,bmnk->bnglm", grouped, call.key, preferred_element_type=jnp.float32)
    if call.view.bias is not None:
        bias = call.view.bias(call.view.queries.index, call.view.keys.index)
        scores = scores + bias.reshape(n, h // n, *bias.shape[1:])
    scores = jnp.where(attention_mask(allowed, call.view)[:, None, None], scores, MASK_VALUE)
    shares = jax.nn.softmax(scores, axis=-1).astype(call.value.dtype)
    shares = dropout(shares, call.settings.dropout, call.dropout_key)
    out = jnp.einsum("bnglm,bmnk->blngk", shares, call.value).reshape(b, l, h, k)
    return out, jnp.moveaxis(jax.nn.logsumexp(scores, axis=-1), -1, 1).reshape(b, l, h)


def cudnn(call: AttentionInputs, allowed: Allowed) -> PartialAttention:
    """`dense` by cuDNN's flash attention: scores stay on the chip, the mask (of all heads) does not."""
    view = call.view
    causal = view.backward and view.queries is view.keys
    everything = view.queries.one_text and view.keys.one_text and (causal or not view.causal)
    seen = (
        None
        if everything and getattr(allowed, "__func__", None) is Dense.allowed
        else attention_mask(allowed, view)[:, None]
    )
    scale, sides = call.settings.scale, (call.query, call.key, call.value)
    out = jax.nn.dot_product_attention(*sides, mask=seen, scale=scale, is_causal=causal, implementation="cudnn")
    return out, jnp.zeros(out.shape[:3], jnp.float32)  # unions of sets, which need it, are refused


def full_attention(call: AttentionInputs, allowed: Allowed) -> PartialAttention:
    """All pairs; for as many queries at a time as keep scores under `CHUNK_BYTES`, made again in the backward pass.

    Of a causal row the pairs below the diagonal, and few above it.
    """
    whole = cudnn if call.settings.kernel == "cudnn" else dense
    b, l, h, _ = call.query.shape
    itself = call.view.backward and call.view.queries is call.view.keys
    if whole is dense and itself and l >= 2 * SMALLEST_STEP and shards("length") == 1:
        return causal_blocks(call, allowed)
    if l * call.key.shape[1] <= WHOLE_SQUARE or l == 1:
        return whole(call, allowed)
    size = max(CHUNK_BYTES // (4 * b * h * call.key.shape[1]), 1)
    count = -(-l // size)

    def parts(x: Array) -> Array:
        return jnp.moveaxis(split_axis(x, 1, count, size), 1, 0)

    @jax.checkpoint
    def one(part: tuple[Any, ...]) -> PartialAttention:
        query, index, segment_ids, at, key = part
        view = replace(call.view, queries=TokenPositions(index, segment_ids, at=at))
        return whole(replace(call, query=query, view=view, dropout_key=key), allowed)

    keys = None if call.dropout_key is None else jax.random.split(call.dropout_key, count)
    places = call.view.queries
    query, segment_ids, at = jax.tree.map(parts, (call.query, places.segment_ids, places.at))
    made = jax.lax.map(one, (query, split_axis(places.index, 0, count, size), segment_ids, at, keys))
    out, log_sum = (jnp.moveaxis(x, 0, 1) for x in made)
    return out.reshape(b, count * size, h, -1)[:, :l], log_sum.reshape(b, count * size, h)[:, :l]


def causal_blocks(call: AttentionInputs, allowed: Allowed) -> PartialAttention:
    """A causal row in steps: the queries of each look at the keys up to its end alone."""
    view, l = call.view, call.query.shape[1]
    size = max(-(-l // STEPS), SMALLEST_STEP)
    bias = None
    if view.bias is not None and l * l <= WHOLE_SQUARE:
        bias = view.bias(view.queries.index, view.keys.index)

    def step(start: int) -> PartialAttention:
        own, seen = slice(start, start + size), slice(0, start + size)
        of_step = view.bias if bias is None else lambda query, key: bias[:, own, seen]
        places = replace(view, queries=view.queries[own], keys=view.keys[seen], bias=of_step)
        key = None if call.dropout_key is None else jax.random.fold_in(call.dropout_key, start)
        query, keys, values = call.query[:, own], call.key[:, seen], call.value[:, seen]
        return full_attention(AttentionInputs(query, keys, values, places, call.settings, key), allowed)

    out, log_sum = zip(*map(step, range(0, l, size)), strict=True)
    return jnp.concatenate(out, axis=1), jnp.concatenate(log_sum, axis=1)


def blocks(call: AttentionInputs, shape: Blocks, allowed: Allowed) -> PartialAttention:
    """Each block of queries looks at itself and at its neighbours alone; `index` counts from the first neighbour."""
    size, before, after = shape.size, shape.before, shape.after
    b, l = call.query.shape[:2]
    count = -(-l // size)

    def apart(x: Array) -> Array:
        """`[b·count, size, …]`."""
        return split_axis(x, 1, count, size).reshape(b * count, size, *x.shape[2:])

    def beside(x: Array) -> Array:
        """`[b·count, (before + 1 + after)·size, …]`: each block and its neighbours."""
        around = jnp.pad(split_axis(x, 1, count, size), [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 1)])
        near = jnp.concatenate([around[:, n : n + count] for n in range(before + 1 + after)], axis=2)
        return near.reshape(b * count, -1, *x.shape[2:])

    keys, queries = call.view.keys, call.view.queries
    segments, prefix = jax.tree.map(beside, (keys.segment_ids, keys.prefix))
    near = TokenPositions(jnp.arange((before + 1 + after) * size), segments, prefix)
    own = TokenPositions(before * size + jnp.arange(size), apart(queries.segment_ids))
    view = replace(call.view, queries=own, keys=near)
    own_call = replace(call, query=apart(call.query), key=beside(call.key), value=beside(call.value), view=view)
    made = attention_in_row_chunks(own_call, allowed)
    out, log_sum = (x.reshape(b, count * size, *x.shape[2:])[:, :l] for x in made)
    return out, log_sum


def attention_in_row_chunks(call: AttentionInputs, allowed: Allowed) -> PartialAttention:
    """`square` of many short rows, as many at a time as fit into a cache, made again in the backward pass.

    Measured on two CPU cores at 32768 tokens, 1.6 times as fast as all at once; and the time per token stays the same.
    """
    b, l, h, _ = call.query.shape
    keys, queries = call.view.keys, call.view.queries
    size = max(CACHED_BYTES // (4 * h * l * call.key.shape[1]), 1)
    if b <= size:
        return full_attention(call, allowed)
    count = -(-b // size)

    @jax.checkpoint
    def one(part: tuple[Any, ...]) -> PartialAttention:
        query, key, value, segments, of_keys, prefix, number = part
        own = replace(keys, segment_ids=of_keys, prefix=prefix)
        view = replace(call.view, queries=replace(queries, segment_ids=segments), keys=own)
        drawn = None if call.dropout_key is None else jax.random.fold_in(call.dropout_key, number)
        return full_attention(replace(call, query=query, key=key, value=value, view=view, dropout_key=drawn), allowed)

    given = (call.query, call.key, call.value, queries.segment_ids, keys.segment_ids, keys.prefix)
    made = jax.lax.map(one, (*jax.tree.map(lambda x: split_axis(x, 0, count, size), given), jnp.arange(count)))
    out, log_sum = (x.reshape(count * size, *x.shape[2:])[:b] for x in made)
    return out, log_sum


def columns(call: AttentionInputs, shape: Columns, allowed: Allowed) -> PartialAttention:
    """Each set of places that are `stride` apart is a short row of its own."""
    stride = shape.stride
    b, l = call.query.shape[:2]
    count = -(-l // stride)

    def apart(x: Array) -> Array:
        return jnp.moveaxis(split_axis(x, 1, count, stride), 2, 1).reshape(b * stride, count, *x.shape[2:])

    def together(x: Array) -> Array:
        rows = jnp.moveaxis(x.reshape(b, stride, count, *x.shape[2:]), 1, 2)
        return rows.reshape(b, count * stride, *x.shape[2:])[:, :l]

    segments, prefix = jax.tree.map(apart, (call.view.keys.segment_ids, call.view.keys.prefix))
    places = TokenPositions(stride * jnp.arange(count), segments, prefix)
    view = replace(call.view, queries=places, keys=places)
    short = replace(call, query=apart(call.query), key=apart(call.key), value=apart(call.value), view=view)
    out, log_sum = full_attention(short, allowed)
    return together(out), together(log_sum)


def chosen(call: AttentionInputs, shape: Chosen, allowed: Allowed) -> PartialAttention:
    """All queries, a few keys."""
    places = np.array(shape.places(call.key.shape[1]), np.int32)
    view = replace(call.view, keys=call.view.keys[places])
    return full_attention(replace(call, key=call.key[:, places], value=call.value[:, places], view=view), allowed)


def first(call: AttentionInputs, shape: First, allowed: Allowed) -> PartialAttention:
    """A few queries, all keys; the others see nothing."""
    count, l = shape.count, call.query.shape[1]
    view = replace(call.view, queries=call.view.queries[:count])
    out, log_sum = full_attention(replace(call, query=call.query[:, :count], view=view), allowed)
    rest = ((0, 0), (0, l - count), (0, 0))
    return jnp.pad(out, (*rest, (0, 0))), jnp.pad(log_sum, rest, constant_values=MASK_VALUE)


SHAPES: dict[type, Callable[[AttentionInputs, Any, Allowed], PartialAttention]] = {
    Blocks: blocks,
    Columns: columns,
    Chosen: chosen,
    First: first,
}


def merge_partial_softmax(results: Sequence[PartialAttention]) -> PartialAttention:
    """One softmax over several sets of keys, from the softmax over each."""
    log_sums = jnp.stack([log_sum for _, log_sum in results])
    log_sum = jax.nn.logsumexp(log_sums, axis=0)
    shares = jnp.exp(log_sums - log_sum)[..., None]
    outs = jnp.stack([out for out, _ in results])
    return jnp.sum(shares.astype(outs.dtype) * outs, axis=0), log_sum
