"""Flash attention for TPUs, by Pallas and Mosaic: the grids of its kernels.

The last axis of each grid goes along the tiles that one result sums, one step after the other, while the compiler
fetches the next tile. A result is in the core's memory until its last tile.

Queries, keys and values are `[b, l, c]` here, the channels of all heads one after the other, as the projections compute
them: no copy changes their layout. A block of heads fills the 128 lanes of a row: one head, padded where it is
narrower, or several narrow heads.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from t5x_lite.models.attention.flash_tiles import FlashGradients, FlashInputs, FlashSettings, Scalar, add_overlaps
from t5x_lite.models.attention.flash_tpu_blocks import (
    LANES,
    Tile,
    head_groups,
    input_blocks,
    key_spec,
    query_row_spec,
    query_spec,
)
from t5x_lite.models.attention.flash_tpu_kernels import (
    bias_gradient_kernel,
    forward_kernel,
    key_value_gradient_kernel,
    query_gradient_kernel,
)

MAX_HEADS_PER_BLOCK = 8
"""The tiles of a bias for more heads would not fit into the core's memory."""


def heads_per_block(heads: int, key_heads: int, width: int) -> int:
    """Return how many heads of a width share a row of lanes: as many as fill it, if each has keys of its own."""
    count = LANES // width
    if heads == key_heads and LANES % width == 0 and heads % count == 0 and count <= MAX_HEADS_PER_BLOCK:
        return count
    return 1


def pack_heads(x: Float[Array, "b l h k"], settings: FlashSettings) -> Float[Array, "b l c"]:
    """Return the channels of all heads one after the other, each head padded to its lanes."""
    batch, length, heads, width = x.shape
    lanes = LANES // settings.heads_per_block
    return jnp.pad(x, [(0, 0), (0, 0), (0, 0), (0, lanes - width)]).reshape(batch, length, heads * lanes)


def unpack_heads(x: Float[Array, "b l c"], heads: int, width: int) -> Float[Array, "b l h k"]:
    """Return the channels of each head."""
    batch, length, _ = x.shape
    return x.reshape(batch, length, heads, -1)[..., :width]


def forward(inputs: FlashInputs, settings: FlashSettings) -> tuple[Float[Array, "b l c"], Float[Array, "b n h l"]]:
    """Return the output, and the logarithm to base 2 of the sum of the exponentiated scores of every row."""
    batch, length, channels = inputs.query.shape
    blocks = channels // LANES
    heads = settings.heads_per_block
    place = Tile
    specs, arrays = input_blocks(inputs, settings, place)
    out, log_sum = _call(
        partial(forward_kernel, inputs=inputs, settings=settings),
        grid=(batch, blocks, length // settings.block_q, inputs.key.shape[1] // settings.block_k),
        specs=specs,
        arrays=arrays,
        out_specs=[query_spec(settings, place), query_row_spec(settings, place)],
        out_shapes=[
            jax.ShapeDtypeStruct(inputs.query.shape, inputs.query.dtype),
            jax.ShapeDtypeStruct((batch, blocks, heads, length), jnp.float32),
        ],
        scratch=[(settings.block_q, LANES), (heads, settings.block_q, LANES), (heads, settings.block_q, LANES)],
        settings=settings,
        name="flash_attention_forward",
    )
    return out, log_sum


def backward(
    inputs: FlashInputs,
    settings: FlashSettings,
    out: Float[Array, "b l c"],
    out_gradient: Float[Array, "b l c"],
    log_sum: Float[Array, "b n h l"],
) -> FlashGradients:
    """Return the gradients of queries, keys, values and bias."""
    batch, length, channels = inputs.query.shape
    query_tiles = length // settings.block_q
    key_tiles = inputs.key.shape[1] // settings.block_k
    groups = head_groups(inputs)
    call = partial(_call, settings=settings)

    by_query = Tile
    specs, arrays = input_blocks(inputs, settings, by_query)
    spec_of_queries = query_spec(settings, by_query)
    row_spec = query_row_spec(settings, by_query)
    query, delta = call(
        partial(query_gradient_kernel, inputs=inputs, settings=settings),
        grid=(batch, channels // LANES, query_tiles, key_tiles),
        specs=[*specs, spec_of_queries, row_spec, spec_of_queries],
        arrays=[*arrays, out_gradient, log_sum, out],
        out_specs=[spec_of_queries, row_spec],
        out_shapes=[
            jax.ShapeDtypeStruct(inputs.query.shape, inputs.query.dtype),
            jax.ShapeDtypeStruct(log_sum.shape, jnp.float32),
        ],
        scratch=[(settings.block_q, LANES)],
        name="flash_attention_query_gradient",
    )

    # The query heads that share keys come one after the other, so that one result sums their gradients.
    def by_key(batch: Scalar, key_block: Scalar, key: Scalar, step: Scalar) -> Tile:
        return Tile(batch, key_block * groups + step // query_tiles, step % query_tiles, key)

    specs, arrays = input_blocks(inputs, settings, by_key)
    row_spec = query_row_spec(settings, by_key)
    spec_of_keys = key_spec(inputs, settings, by_key)
    key, value = call(
        partial(key_value_gradient_kernel, inputs=inputs, settings=settings),
        grid=(batch, channels // LANES // groups, key_tiles, groups * query_tiles),
        specs=[*specs, query_spec(settings, by_key), row_spec, row_spec],
        arrays=[*arrays, out_gradient, log_sum, delta],
        out_specs=[spec_of_keys, spec_of_keys],
        out_shapes=[jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (inputs.key, inputs.value)],
        scratch=[(settings.block_k, LANES), (settings.block_k, LANES)],
        name="flash_attention_key_value_gradient",
    )
    bias = None
    if inputs.bias_tiles is not None:
        bias = _bias_gradient(inputs, settings, out_gradient, log_sum, delta)
    return FlashGradients(query, key, value, bias)


def _bias_gradient(
    inputs: FlashInputs,
    settings: FlashSettings,
    out_gradient: Float[Array, "b l c"],
    log_sum: Float[Array, "b n h l"],
    delta: Float[Array, "b n h l"],
) -> Float[Array, "h x"]:
    """Return the gradient of the bias: that of the scores, summed over the batch and along the diagonals.

    All tiles of a block diagonal hold the same offsets, so that they are added as they are; see `diagonal_tiles`.
    """
    batch, length, channels = inputs.query.shape
    block = settings.block_q
    query_tiles = length // block
    key_tiles = inputs.key.shape[1] // block
    diagonals = query_tiles + key_tiles - 1
    blocks = channels // LANES
    heads = settings.heads_per_block

    def place(head_block: Scalar, diagonal: Scalar, batch: Scalar, query: Scalar) -> Tile:
        key = jnp.clip(query + diagonal - (query_tiles - 1), 0, key_tiles - 1)
        return Tile(batch, head_block, query, key)

    def sums_block(head_block: Scalar, diagonal: Scalar, batch: Scalar, query: Scalar) -> tuple[Scalar, ...]:
        return head_block, diagonal, 0, 0

    specs, arrays = input_blocks(inputs, settings, place)
    row_spec = query_row_spec(settings, place)
    (sums,) = _call(
        partial(bias_gradient_kernel, inputs=inputs, settings=settings),
        grid=(blocks, diagonals, batch, query_tiles),
        specs=[*specs, query_spec(settings, place), row_spec, row_spec],
        arrays=[*arrays, out_gradient, log_sum, delta],
        out_specs=[pl.BlockSpec((heads, None, 1, 2 * block), sums_block)],
        out_shapes=[jax.ShapeDtypeStruct((blocks * heads, diagonals, 1, 2 * block), jnp.float32)],
        scratch=[(heads, block, block)],
        settings=settings,
        name="flash_attention_bias_gradient",
        parallel=2,
    )
    return add_overlaps(sums[:, :, 0])


def _call(
    kernel: Callable[..., None],
    *,
    grid: tuple[int, ...],
    specs: Sequence[pl.BlockSpec],
    arrays: Sequence[Array],
    out_specs: Sequence[pl.BlockSpec],
    out_shapes: Sequence[jax.ShapeDtypeStruct],
    scratch: Sequence[tuple[int, ...]],
    settings: FlashSettings,
    name: str,
    parallel: int = 3,
) -> list[Array]:
    """Run a kernel over a grid whose first `parallel` axes may run in any order."""
    ordered = pltpu.GridDimensionSemantics.ARBITRARY
    semantics = [pltpu.GridDimensionSemantics.PARALLEL] * parallel + [ordered] * (len(grid) - parallel)
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=specs,
        out_specs=out_specs,
        out_shape=out_shapes,
        scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        compiler_params=pltpu.CompilerParams(dimension_semantics=semantics),
        interpret=settings.interpret,
        name=name,
    )(*arrays)
