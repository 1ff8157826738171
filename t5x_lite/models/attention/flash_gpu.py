"""The kernels of flash attention for NVIDIA GPUs, by Pallas and Triton.

Every program of a grid owns one tile of its result and loops over the other side of attention, so that no two programs
write to the same place and gradients are deterministic.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from t5x_lite.models.attention.flash import (
    LOG2_E,
    MASK_VALUE,
    FlashInputs,
    FlashSettings,
    keep_mask,
    key_blocks,
    query_blocks,
    row_number,
    tile_mask,
)


def _dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    return jax.lax.dot_general(a, b, (((contract[0],), (contract[1],)), ((), ())), preferred_element_type=jnp.float32)


def _column(ref: Any, start: Any, size: int) -> Array:
    return ref[pl.ds(start, size)][:, None]


def _row(ref: Any, start: Any, size: int) -> Array:
    return ref[pl.ds(start, size)][None, :]


class _Refs:
    """The inputs of one program, of one row of the batch and one head."""

    def __init__(self, refs: Any, settings: FlashSettings, *, has_bias: bool) -> None:
        rest = list(refs)
        self.scalars, self.query, self.key, self.value, self.query_segments, self.key_segments = rest[:6]
        rest = rest[6:]
        self.prefix = rest.pop(0) if settings.has_prefix else None
        self.bias = rest.pop(0) if has_bias else None
        self.settings = settings
        self.rest = rest

    def tile(
        self, query: Array, key: Array, query_start: Any, key_start: Any, batch: Any, head: Any, heads: int
    ) -> tuple[Array, Array, Array | None]:
        """Scores, mask, and which weights survive dropout, of one tile."""
        settings = self.settings
        block_q, block_k = query.shape[0], key.shape[0]
        first = self.scalars[0]
        query_index = first + query_start + jnp.arange(block_q)[:, None]
        key_index = key_start + jnp.arange(block_k)[None, :]
        scores = _dot(query, key, (1, 1)) * (settings.scale * LOG2_E)
        if self.bias is not None:
            diagonal = key_start // block_k - query_start // block_q + self.query.shape[0] // block_q - 1
            scores = scores + self.bias[diagonal]
        mask = tile_mask(
            query_index,
            key_index,
            _column(self.query_segments, query_start, block_q),
            _row(self.key_segments, key_start, block_k),
            None if self.prefix is None else _row(self.prefix, key_start, block_k),
            settings,
        )
        keep = None
        if settings.dropout > 0:
            keep = keep_mask(self.scalars[1], row_number(batch, head, heads, query_index), key_index, settings.dropout)
        return jnp.where(mask, scores, MASK_VALUE), mask, keep


def _specs(inputs: FlashInputs, place: Any) -> tuple[list[pl.BlockSpec], list[Array]]:
    """Block specs and arrays of the inputs; `place(*program ids)` gives the batch row and the head."""
    length, heads, width = inputs.query.shape[1:]
    keys, kv_heads = inputs.key.shape[1:3]
    groups = heads // kv_heads

    def of_query(*ids: Any) -> tuple[Any, ...]:
        batch, head = place(*ids)
        return batch, 0, head, 0

    def of_key(*ids: Any) -> tuple[Any, ...]:
        batch, head = place(*ids)
        return batch, 0, head // groups, 0

    def of_batch(*ids: Any) -> tuple[Any, ...]:
        return place(*ids)[0], 0

    def of_head(*ids: Any) -> tuple[Any, ...]:
        return place(*ids)[1], 0, 0, 0

    specs = [
        pl.BlockSpec((2,), lambda *_: (0,)),
        pl.BlockSpec((None, length, None, width), of_query),
        pl.BlockSpec((None, keys, None, width), of_key),
        pl.BlockSpec((None, keys, None, width), of_key),
        pl.BlockSpec((None, length), of_batch),
        pl.BlockSpec((None, keys), of_batch),
    ]
    arrays = [
        inputs.scalars,
        inputs.query,
        inputs.key,
        inputs.value,
        inputs.query_segments,
        inputs.key_segments,
    ]
    if inputs.prefix is not None:
        specs.append(pl.BlockSpec((None, keys), of_batch))
        arrays.append(inputs.prefix)
    if inputs.bias is not None:
        specs.append(pl.BlockSpec((None, *inputs.bias.shape[1:]), of_head))
        arrays.append(inputs.bias)
    return specs, arrays


def _compiler_params(width: int, settings: FlashSettings) -> plgpu.CompilerParams:
    warps = settings.warps or (4 if width <= 64 else 8)
    return plgpu.CompilerParams(num_warps=warps, num_stages=settings.stages)


def forward(inputs: FlashInputs, settings: FlashSettings) -> tuple[Float[Array, "b l h k"], Float[Array, "b h l"]]:
    """Attention output, and the logarithm to base 2 of the sum of exponentiated scores of every row."""
    batch, length, heads, width = inputs.query.shape
    block = settings.block_q
    specs, arrays = _specs(inputs, lambda b, h, i: (b, h))
    out, log_sum = pl.pallas_call(
        partial(_forward_kernel, settings=settings, heads=heads, has_bias=inputs.bias is not None),
        grid=(batch, heads, length // block),
        in_specs=specs,
        out_specs=[
            pl.BlockSpec((None, block, None, width), lambda b, h, i: (b, i, h, 0)),
            pl.BlockSpec((None, None, block), lambda b, h, i: (b, h, i)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(inputs.query.shape, inputs.query.dtype),
            jax.ShapeDtypeStruct((batch, heads, length), jnp.float32),
        ],
        compiler_params=_compiler_params(width, settings),
        interpret=settings.interpret,
        name="flash_attention_forward",
    )(*arrays)
    return out, log_sum


def _forward_kernel(*refs: Any, settings: FlashSettings, heads: int, has_bias: bool) -> None:
    inputs = _Refs(refs, settings, has_bias=has_bias)
    out_ref, log_sum_ref = inputs.rest
    batch, head = pl.program_id(0), pl.program_id(1)
    block_q, block_k = settings.block_q, settings.block_k
    start = pl.program_id(2) * block_q
    query = inputs.query[pl.ds(start, block_q), :]
    keys = inputs.key.shape[0]

    def step(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        out, largest, total = carry
        key_start = j * block_k
        key = inputs.key[pl.ds(key_start, block_k), :]
        value = inputs.value[pl.ds(key_start, block_k), :]
        scores, mask, keep = inputs.tile(query, key, start, key_start, batch, head, heads)
        new_largest = jnp.maximum(largest, jnp.max(scores, axis=1))
        weights = jnp.where(mask, jnp.exp2(scores - new_largest[:, None]), 0.0)
        correction = jnp.exp2(largest - new_largest)
        total = total * correction + jnp.sum(weights, axis=1)
        if keep is not None:
            weights = jnp.where(keep, weights, 0.0)
        out = out * correction[:, None] + _dot(weights.astype(value.dtype), value, (1, 0))
        return out, new_largest, total

    first_index = inputs.scalars[0] + start
    lower, upper = key_blocks(first_index, block_q, keys, settings)
    zeros = jnp.zeros((block_q, query.shape[1]), jnp.float32)
    largest = jnp.full((block_q,), MASK_VALUE, jnp.float32)
    out, largest, total = jax.lax.fori_loop(lower, upper, step, (zeros, largest, jnp.zeros((block_q,), jnp.float32)))
    total = jnp.where(total == 0, 1.0, total)
    out_ref[...] = (out / (total * (1 - settings.dropout))[:, None]).astype(out_ref.dtype)
    log_sum_ref[...] = largest + jnp.log2(total)


def backward(
    inputs: FlashInputs, settings: FlashSettings, out_gradient: Array, log_sum: Array, delta: Array
) -> tuple[Array, Array, Array]:
    """Gradients of queries, and of keys and values for every query head, in float32."""
    batch, length, heads, width = inputs.query.shape
    keys = inputs.key.shape[1]
    specs, arrays = _specs(inputs, lambda b, h, i: (b, h))
    specs += [
        pl.BlockSpec((None, length, None, width), lambda b, h, i: (b, 0, h, 0)),
        pl.BlockSpec((None, None, length), lambda b, h, i: (b, h, 0)),
        pl.BlockSpec((None, None, length), lambda b, h, i: (b, h, 0)),
    ]
    arrays += [out_gradient, log_sum, delta]
    common: dict[str, Any] = {"settings": settings, "heads": heads, "has_bias": inputs.bias is not None}

    def tiles(block: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, block, None, width), lambda b, h, i: (b, i, h, 0))

    query = pl.pallas_call(
        partial(_query_gradient_kernel, **common),
        grid=(batch, heads, length // settings.block_q),
        in_specs=specs,
        out_specs=tiles(settings.block_q),
        out_shape=jax.ShapeDtypeStruct(inputs.query.shape, inputs.query.dtype),
        compiler_params=_compiler_params(width, settings),
        interpret=settings.interpret,
        name="flash_attention_query_gradient",
    )(*arrays)
    shape = jax.ShapeDtypeStruct((batch, keys, heads, width), inputs.key.dtype)
    key, value = pl.pallas_call(
        partial(_key_value_gradient_kernel, **common),
        grid=(batch, heads, keys // settings.block_k),
        in_specs=specs,
        out_specs=[tiles(settings.block_k), tiles(settings.block_k)],
        out_shape=[shape, shape],
        compiler_params=_compiler_params(width, settings),
        interpret=settings.interpret,
        name="flash_attention_key_value_gradient",
    )(*arrays)
    return query, key, value


def _weights_and_gradient(
    inputs: _Refs,
    query: Array,
    key: Array,
    value: Array,
    out_gradient: Array,
    starts: tuple[Any, Any],
    ids: tuple[Any, Any],
    heads: int,
) -> tuple[Array, Array]:
    """Attention weights after dropout, and the gradient of the scores, of one tile."""
    _, log_sum_ref, delta_ref = inputs.rest[:3]
    query_start, key_start = starts
    block_q = query.shape[0]
    scores, mask, keep = inputs.tile(query, key, query_start, key_start, ids[0], ids[1], heads)
    weights = jnp.where(mask, jnp.exp2(scores - _column(log_sum_ref, query_start, block_q)), 0.0)
    gradient = _dot(out_gradient, value, (1, 1))
    dropped = weights
    if keep is not None:
        kept = 1 / (1 - inputs.settings.dropout)
        gradient = jnp.where(keep, gradient * kept, 0.0)
        dropped = jnp.where(keep, weights * kept, 0.0)
    return dropped, weights * (gradient - _column(delta_ref, query_start, block_q))


def _query_gradient_kernel(*refs: Any, settings: FlashSettings, heads: int, has_bias: bool) -> None:
    inputs = _Refs(refs, settings, has_bias=has_bias)
    out_gradient_ref, result_ref = inputs.rest[0], inputs.rest[3]
    ids = pl.program_id(0), pl.program_id(1)
    block_q, block_k = settings.block_q, settings.block_k
    start = pl.program_id(2) * block_q
    query = inputs.query[pl.ds(start, block_q), :]
    out_gradient = out_gradient_ref[pl.ds(start, block_q), :]

    def step(j: Array, result: Array) -> Array:
        key_start = j * block_k
        key = inputs.key[pl.ds(key_start, block_k), :]
        value = inputs.value[pl.ds(key_start, block_k), :]
        _, scores = _weights_and_gradient(inputs, query, key, value, out_gradient, (start, key_start), ids, heads)
        return result + _dot(scores.astype(key.dtype), key, (1, 0))

    lower, upper = key_blocks(inputs.scalars[0] + start, block_q, inputs.key.shape[0], settings)
    result = jax.lax.fori_loop(lower, upper, step, jnp.zeros(query.shape, jnp.float32))
    result_ref[...] = (result * settings.scale).astype(result_ref.dtype)


def _key_value_gradient_kernel(*refs: Any, settings: FlashSettings, heads: int, has_bias: bool) -> None:
    inputs = _Refs(refs, settings, has_bias=has_bias)
    out_gradient_ref, key_ref, value_ref = inputs.rest[0], inputs.rest[3], inputs.rest[4]
    ids = pl.program_id(0), pl.program_id(1)
    block_q, block_k = settings.block_q, settings.block_k
    start = pl.program_id(2) * block_k
    key = inputs.key[pl.ds(start, block_k), :]
    value = inputs.value[pl.ds(start, block_k), :]

    def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        key_gradient, value_gradient = carry
        query_start = i * block_q
        query = inputs.query[pl.ds(query_start, block_q), :]
        out_gradient = out_gradient_ref[pl.ds(query_start, block_q), :]
        weights, scores = _weights_and_gradient(
            inputs, query, key, value, out_gradient, (query_start, start), ids, heads
        )
        value_gradient = value_gradient + _dot(weights.astype(out_gradient.dtype), out_gradient, (0, 0))
        key_gradient = key_gradient + _dot(scores.astype(query.dtype), query, (0, 0))
        return key_gradient, value_gradient

    lower, upper = query_blocks(start, inputs.scalars[0], inputs.query.shape[0], settings)
    zeros = jnp.zeros(key.shape, jnp.float32)
    key_gradient, value_gradient = jax.lax.fori_loop(lower, upper, step, (zeros, zeros))
    key_ref[...] = (key_gradient * settings.scale).astype(key_ref.dtype)
    value_ref[...] = value_gradient.astype(value_ref.dtype)


def bias_gradient(
    inputs: FlashInputs, settings: FlashSettings, out_gradient: Array, log_sum: Array, delta: Array
) -> Float[Array, "h d q k"]:
    """Gradients of the scores, summed over the batch and along the tiles of each diagonal; see `sum_diagonals`.

    All tiles of a block diagonal hold the same offsets, so that they are added as they are.
    """
    batch, length, heads, width = inputs.query.shape
    keys = inputs.key.shape[1]
    block = settings.block_q
    assert settings.block_k == block, "tiles of the bias gradient are square"
    diagonals = length // block + keys // block - 1
    specs, arrays = _specs(inputs, lambda h, d, b: (b, h))
    specs += [
        pl.BlockSpec((None, length, None, width), lambda h, d, b: (b, 0, h, 0)),
        pl.BlockSpec((None, None, length), lambda h, d, b: (b, h, 0)),
        pl.BlockSpec((None, None, length), lambda h, d, b: (b, h, 0)),
    ]
    tiles = pl.pallas_call(
        partial(_bias_gradient_kernel, settings=settings, heads=heads),
        grid=(heads, diagonals, batch),
        in_specs=specs,
        out_specs=pl.BlockSpec((None, None, None, block, block), lambda h, d, b: (b, h, d, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((batch, heads, diagonals, block, block), jnp.float32),
        compiler_params=_compiler_params(width, settings),
        interpret=settings.interpret,
        name="flash_attention_bias_gradient",
    )(*arrays, out_gradient, log_sum, delta)
    return tiles.sum(0)


def _bias_gradient_kernel(*refs: Any, settings: FlashSettings, heads: int) -> None:
    inputs = _Refs(refs, settings, has_bias=True)
    out_gradient_ref, tile_ref = inputs.rest[0], inputs.rest[3]
    head, diagonal, batch = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    block = settings.block_q
    queries, keys = inputs.query.shape[0] // block, inputs.key.shape[0] // block
    shift = diagonal - (queries - 1)

    def step(i: Array, total: Array) -> Array:
        query_start, key_start = i * block, (i + shift) * block
        query = inputs.query[pl.ds(query_start, block), :]
        key = inputs.key[pl.ds(key_start, block), :]
        value = inputs.value[pl.ds(key_start, block), :]
        out_gradient = out_gradient_ref[pl.ds(query_start, block), :]
        _, scores = _weights_and_gradient(
            inputs, query, key, value, out_gradient, (query_start, key_start), (batch, head), heads
        )
        return total + scores

    lower = jnp.maximum(-shift, 0)
    upper = jnp.minimum(queries, keys - shift)
    if settings.causal and not settings.has_prefix:
        # With the first query at index 0 no tile above the diagonal is seen.
        upper = jnp.where((shift > 0) & (inputs.scalars[0] == 0), lower, upper)
    tile_ref[...] = jax.lax.fori_loop(lower, upper, step, jnp.zeros((block, block), jnp.float32))
