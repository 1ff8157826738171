"""The kernels of flash attention for NVIDIA GPUs, by Pallas and Triton.

Every program of a grid owns one tile of its result and loops over the other side of attention, so that no two programs
write to the same place and gradients are deterministic.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from t5x_lite.integers import next_power_of_two
from t5x_lite.models.attention.context import MASK_VALUE
from t5x_lite.models.attention.flash_gpu_blocks import (
    ProgramRefs,
    batch_and_head,
    gradient_specs,
    input_specs,
    load_column,
    split_refs,
    tile_spec,
)
from t5x_lite.models.attention.flash_tiles import (
    FlashGradients,
    FlashInputs,
    FlashSettings,
    GradientRefs,
    Ref,
    Scalar,
    dot,
    key_blocks,
    query_blocks,
    score_gradients,
    sum_diagonals,
)

MIN_WIDTH = 16
"""Triton multiplies matrices of at least this many rows and columns."""


def pack_heads(x: Float[Array, "b l h k"], settings: FlashSettings) -> Float[Array, "b l h k"]:
    """Pad the channels of a head to what a product of Triton takes."""
    width = x.shape[3]
    return jnp.pad(x, [(0, 0), (0, 0), (0, 0), (0, max(MIN_WIDTH, next_power_of_two(width)) - width)])


def unpack_heads(x: Float[Array, "b l h k"], heads: int, width: int) -> Float[Array, "b l h k"]:
    """Remove the padding of channels."""
    return x[..., :width]


def _compiler_params(inputs: FlashInputs, settings: FlashSettings) -> triton.CompilerParams:
    warps = settings.warps
    if warps is None:
        warps = 4 if inputs.query.shape[3] <= 64 else 8
    return triton.CompilerParams(num_warps=warps, num_stages=settings.stages)


def forward(inputs: FlashInputs, settings: FlashSettings) -> tuple[Float[Array, "b l h k"], Float[Array, "b h l"]]:
    """Return the output, and the logarithm to base 2 of the sum of the exponentiated scores of every row."""
    batch, length, heads, width = inputs.query.shape
    block = settings.block_q
    specs, arrays = input_specs(inputs, batch_and_head)
    out, log_sum = pl.pallas_call(
        partial(_forward_kernel, inputs=inputs, settings=settings),
        grid=(batch, heads, length // block),
        in_specs=specs,
        out_specs=[
            tile_spec(block, width),
            pl.BlockSpec((None, None, block), lambda batch, head, tile: (batch, head, tile)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(inputs.query.shape, inputs.query.dtype),
            jax.ShapeDtypeStruct((batch, heads, length), jnp.float32),
        ],
        compiler_params=_compiler_params(inputs, settings),
        interpret=settings.interpret,
        name="flash_attention_forward",
    )(*arrays)
    return out, log_sum


def _forward_kernel(*refs: Ref, inputs: FlashInputs, settings: FlashSettings) -> None:
    program, (out_ref, log_sum_ref) = split_refs(refs, inputs, settings, pl.program_id(0), pl.program_id(1))
    block_q = settings.block_q
    block_k = settings.block_k
    start = pl.program_id(2) * block_q
    query = program.query[pl.ds(start, block_q), :]

    def add_tile(j: Scalar, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        out, largest, total = carry
        key_start = j * block_k
        key = program.key[pl.ds(key_start, block_k), :]
        value = program.value[pl.ds(key_start, block_k), :]
        scores, mask, keep = program.scores(query, key, start, key_start)
        new_largest = jnp.maximum(largest, jnp.max(scores, axis=1))
        weights = jnp.where(mask, jnp.exp2(scores - new_largest[:, None]), 0.0)
        correction = jnp.exp2(largest - new_largest)
        total = total * correction + jnp.sum(weights, axis=1)
        if keep is not None:
            weights = jnp.where(keep, weights, 0.0)
        out = out * correction[:, None] + dot(weights.astype(value.dtype), value, (1, 0))
        return out, new_largest, total

    first, last = key_blocks(program.scalars[0] + start, block_q, program.key.shape[0], settings)
    out = jnp.zeros((block_q, query.shape[1]), jnp.float32)
    largest = jnp.full((block_q,), MASK_VALUE, jnp.float32)
    total = jnp.zeros((block_q,), jnp.float32)
    out, largest, total = jax.lax.fori_loop(first, last, add_tile, (out, largest, total))
    total = jnp.where(total == 0, 1.0, total)
    out_ref[...] = (out / (total * (1 - settings.dropout))[:, None]).astype(out_ref.dtype)
    log_sum_ref[...] = largest + jnp.log2(total)


def backward(
    inputs: FlashInputs,
    settings: FlashSettings,
    out: Float[Array, "b l h k"],
    out_gradient: Float[Array, "b l h k"],
    log_sum: Float[Array, "b h l"],
) -> FlashGradients:
    """Return the gradients of queries, keys, values and bias."""
    batch, length, heads, width = inputs.query.shape
    delta = jnp.einsum("blhk,blhk->bhl", out.astype(jnp.float32), out_gradient.astype(jnp.float32))
    keys = inputs.key.shape[1]
    specs, arrays = input_specs(inputs, batch_and_head)
    specs += gradient_specs(inputs, batch_and_head)
    arrays += [out_gradient, log_sum, delta]
    query = pl.pallas_call(
        partial(_query_gradient_kernel, inputs=inputs, settings=settings),
        grid=(batch, heads, length // settings.block_q),
        in_specs=specs,
        out_specs=tile_spec(settings.block_q, width),
        out_shape=jax.ShapeDtypeStruct(inputs.query.shape, inputs.query.dtype),
        compiler_params=_compiler_params(inputs, settings),
        interpret=settings.interpret,
        name="flash_attention_query_gradient",
    )(*arrays)
    key_shape = jax.ShapeDtypeStruct((batch, keys, heads, width), inputs.key.dtype)
    key, value = pl.pallas_call(
        partial(_key_value_gradient_kernel, inputs=inputs, settings=settings),
        grid=(batch, heads, keys // settings.block_k),
        in_specs=specs,
        out_specs=[tile_spec(settings.block_k, width), tile_spec(settings.block_k, width)],
        out_shape=[key_shape, key_shape],
        compiler_params=_compiler_params(inputs, settings),
        interpret=settings.interpret,
        name="flash_attention_key_value_gradient",
    )(*arrays)
    bias = None
    if inputs.bias_tiles is not None:
        bias = _bias_gradient(inputs, settings, out_gradient, log_sum, delta)
    return FlashGradients(query, _sum_head_groups(key, inputs.key), _sum_head_groups(value, inputs.value), bias)


def _sum_head_groups(gradient: Float[Array, "b m h k"], key: Float[Array, "b m n k"]) -> Float[Array, "b m n k"]:
    """Sum a gradient over the query heads that share a key head."""
    b, m, n, k = key.shape
    return gradient.reshape(b, m, n, -1, k).sum(3).astype(key.dtype)


def _tile_gradients(
    program: ProgramRefs,
    gradients: GradientRefs,
    query_start: Scalar,
    key_start: Scalar,
    query: Float[Array, "q k"],
    key: Float[Array, "m k"],
) -> tuple[Float[Array, "q m"], Float[Array, "q m"], Float[Array, "q k"]]:
    """Return the weights after dropout, the gradient of the scores, and the gradient of the output of one tile."""
    block_q = query.shape[0]
    value = program.value[pl.ds(key_start, key.shape[0]), :]
    out_gradient = gradients.out_gradient[pl.ds(query_start, block_q), :]
    scores, mask, keep = program.scores(query, key, query_start, key_start)
    dropped, score_gradient = score_gradients(
        scores,
        mask,
        keep,
        load_column(gradients.log_sum, query_start, block_q),
        load_column(gradients.delta, query_start, block_q),
        dot(out_gradient, value, (1, 1)),
        program.settings,
    )
    return dropped, score_gradient, out_gradient


def _query_gradient_kernel(*refs: Ref, inputs: FlashInputs, settings: FlashSettings) -> None:
    program, remaining = split_refs(refs, inputs, settings, pl.program_id(0), pl.program_id(1))
    gradients = GradientRefs(*remaining[:3])
    result_ref = remaining[3]
    block_q = settings.block_q
    block_k = settings.block_k
    start = pl.program_id(2) * block_q
    query = program.query[pl.ds(start, block_q), :]

    def add_tile(j: Scalar, result: Array) -> Array:
        key_start = j * block_k
        key = program.key[pl.ds(key_start, block_k), :]
        _, score_gradient, _ = _tile_gradients(program, gradients, start, key_start, query, key)
        return result + dot(score_gradient.astype(key.dtype), key, (1, 0))

    first, last = key_blocks(program.scalars[0] + start, block_q, program.key.shape[0], settings)
    result = jax.lax.fori_loop(first, last, add_tile, jnp.zeros(query.shape, jnp.float32))
    result_ref[...] = (result * settings.scale).astype(result_ref.dtype)


def _key_value_gradient_kernel(*refs: Ref, inputs: FlashInputs, settings: FlashSettings) -> None:
    program, remaining = split_refs(refs, inputs, settings, pl.program_id(0), pl.program_id(1))
    gradients = GradientRefs(*remaining[:3])
    key_ref, value_ref = remaining[3:]
    block_q = settings.block_q
    block_k = settings.block_k
    start = pl.program_id(2) * block_k
    key = program.key[pl.ds(start, block_k), :]

    def add_tile(i: Scalar, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        key_gradient, value_gradient = carry
        query_start = i * block_q
        query = program.query[pl.ds(query_start, block_q), :]
        weights, score_gradient, out_gradient = _tile_gradients(program, gradients, query_start, start, query, key)
        value_gradient = value_gradient + dot(weights.astype(out_gradient.dtype), out_gradient, (0, 0))
        key_gradient = key_gradient + dot(score_gradient.astype(query.dtype), query, (0, 0))
        return key_gradient, value_gradient

    first, last = query_blocks(start, program.scalars[0], program.query.shape[0], settings)
    zeros = jnp.zeros(key.shape, jnp.float32)
    key_gradient, value_gradient = jax.lax.fori_loop(first, last, add_tile, (zeros, zeros))
    key_ref[...] = (key_gradient * settings.scale).astype(key_ref.dtype)
    value_ref[...] = value_gradient.astype(value_ref.dtype)


def _bias_gradient(
    inputs: FlashInputs,
    settings: FlashSettings,
    out_gradient: Float[Array, "b l h k"],
    log_sum: Float[Array, "b h l"],
    delta: Float[Array, "b h l"],
) -> Float[Array, "h x"]:
    """Return the gradient of the bias: that of the scores, summed over the batch and along the diagonals.

    All tiles of a block diagonal hold the same offsets, so that they are added as they are; see `diagonal_tiles`.
    """
    batch, length, heads, _ = inputs.query.shape
    block = settings.block_q
    diagonals = length // block + inputs.key.shape[1] // block - 1

    def place(head: Scalar, diagonal: Scalar, batch: Scalar) -> tuple[Scalar, Scalar]:
        return batch, head

    def tile_block(head: Scalar, diagonal: Scalar, batch: Scalar) -> tuple[Scalar, ...]:
        return batch, head, diagonal, 0, 0

    specs, arrays = input_specs(inputs, place)
    tiles = pl.pallas_call(
        partial(_bias_gradient_kernel, inputs=inputs, settings=settings),
        grid=(heads, diagonals, batch),
        in_specs=specs + gradient_specs(inputs, place),
        out_specs=pl.BlockSpec((None, None, None, block, block), tile_block),
        out_shape=jax.ShapeDtypeStruct((batch, heads, diagonals, block, block), jnp.float32),
        compiler_params=_compiler_params(inputs, settings),
        interpret=settings.interpret,
        name="flash_attention_bias_gradient",
    )(*arrays, out_gradient, log_sum, delta)
    return sum_diagonals(tiles.sum(0))


def _bias_gradient_kernel(*refs: Ref, inputs: FlashInputs, settings: FlashSettings) -> None:
    program, remaining = split_refs(refs, inputs, settings, pl.program_id(2), pl.program_id(0))
    gradients = GradientRefs(*remaining[:3])
    tile_ref = remaining[3]
    block = settings.block_q
    query_tiles = program.query.shape[0] // block
    key_tiles = program.key.shape[0] // block
    shift = pl.program_id(1) - (query_tiles - 1)

    def add_tile(i: Scalar, total: Array) -> Array:
        query_start = i * block
        key_start = (i + shift) * block
        query = program.query[pl.ds(query_start, block), :]
        key = program.key[pl.ds(key_start, block), :]
        _, score_gradient, _ = _tile_gradients(program, gradients, query_start, key_start, query, key)
        return total + score_gradient

    first = jnp.maximum(-shift, 0)
    last = jnp.minimum(query_tiles, key_tiles - shift)
    if not settings.sees_later_keys:
        # If the first query is at index 0, no tile above the diagonal is visible.
        last = jnp.where((shift > 0) & (program.scalars[0] == 0), first, last)
    tile_ref[...] = jax.lax.fori_loop(first, last, add_tile, jnp.zeros((block, block), jnp.float32))
