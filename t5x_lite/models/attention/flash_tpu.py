"""The kernels of flash attention for TPUs, by Pallas and Mosaic.

The last axis of each grid goes along the tiles that one result sums, one step after the other, while the compiler
fetches the next tile. A result is in the core's memory until its last tile. Queries, keys and values are `[b, h, l, k]`
here, and what belongs to a token is a row of lanes, which the kernels turn into a column where they need one.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

from t5x_lite.models.attention.context import MASK_VALUE
from t5x_lite.models.attention.flash_tiles import (
    LOG2_E,
    FlashInputs,
    FlashSettings,
    GradientRefs,
    Ref,
    Scalar,
    dot,
    keep_mask,
    score_gradients,
    tile_mask,
)
from t5x_lite.models.attention.flash_tpu_blocks import (
    Tile,
    TileRefs,
    gradient_blocks,
    input_blocks,
    key_spec,
    query_row_spec,
    query_spec,
    split_refs,
)

LANES = 128
"""Values of a row of the core's memory."""


def forward(inputs: FlashInputs, settings: FlashSettings) -> tuple[Float[Array, "b l h k"], Float[Array, "b h l"]]:
    """Return the output, and the logarithm to base 2 of the sum of the exponentiated scores of every row."""
    batch, length, heads, width = inputs.query.shape
    place = Tile
    specs, arrays = input_blocks(inputs, settings, place)
    out, log_sum = _call(
        partial(_forward_kernel, inputs=inputs, settings=settings),
        grid=(batch, heads, length // settings.block_q, inputs.key.shape[1] // settings.block_k),
        specs=specs,
        arrays=arrays,
        out_specs=[query_spec(settings, width, place), query_row_spec(settings, place)],
        out_shapes=[
            jax.ShapeDtypeStruct((batch, heads, length, width), inputs.query.dtype),
            jax.ShapeDtypeStruct((batch, heads, 1, length), jnp.float32),
        ],
        scratch=[(settings.block_q, width), (settings.block_q, LANES), (settings.block_q, LANES)],
        settings=settings,
        name="flash_attention_forward",
    )
    return out.swapaxes(1, 2), log_sum[:, :, 0]


def backward(
    inputs: FlashInputs,
    settings: FlashSettings,
    out_gradient: Float[Array, "b l h k"],
    log_sum: Float[Array, "b h l"],
    delta: Float[Array, "b h l"],
) -> tuple[Float[Array, "b l h k"], Float[Array, "b m h k"], Float[Array, "b m h k"]]:
    """Return the gradients of queries, and of keys and values for every query head."""
    batch, length, heads, width = inputs.query.shape
    keys = inputs.key.shape[1]
    query_tiles = length // settings.block_q
    key_tiles = keys // settings.block_k
    call = partial(_call, settings=settings)

    by_query = Tile
    specs, arrays = input_blocks(inputs, settings, by_query)
    gradient_specs, gradient_arrays = gradient_blocks(inputs, settings, out_gradient, log_sum, delta, by_query)
    (query,) = call(
        partial(_query_gradient_kernel, inputs=inputs, settings=settings),
        grid=(batch, heads, query_tiles, key_tiles),
        specs=specs + gradient_specs,
        arrays=arrays + gradient_arrays,
        out_specs=[query_spec(settings, width, by_query)],
        out_shapes=[jax.ShapeDtypeStruct((batch, heads, length, width), inputs.query.dtype)],
        scratch=[(settings.block_q, width)],
        name="flash_attention_query_gradient",
    )

    def by_key(batch: Scalar, head: Scalar, key: Scalar, query: Scalar) -> Tile:
        return Tile(batch, head, query, key)

    specs, arrays = input_blocks(inputs, settings, by_key)
    gradient_specs, gradient_arrays = gradient_blocks(inputs, settings, out_gradient, log_sum, delta, by_key)
    spec_of_keys = key_spec(settings, width, by_key, groups=1)
    key_shape = jax.ShapeDtypeStruct((batch, heads, keys, width), inputs.key.dtype)
    key, value = call(
        partial(_key_value_gradient_kernel, inputs=inputs, settings=settings),
        grid=(batch, heads, key_tiles, query_tiles),
        specs=specs + gradient_specs,
        arrays=arrays + gradient_arrays,
        out_specs=[spec_of_keys, spec_of_keys],
        out_shapes=[key_shape, key_shape],
        scratch=[(settings.block_k, width), (settings.block_k, width)],
        name="flash_attention_key_value_gradient",
    )
    return query.swapaxes(1, 2), key.swapaxes(1, 2), value.swapaxes(1, 2)


def bias_gradient(
    inputs: FlashInputs,
    settings: FlashSettings,
    out_gradient: Float[Array, "b l h k"],
    log_sum: Float[Array, "b h l"],
    delta: Float[Array, "b h l"],
) -> Float[Array, "h d q m"]:
    """Return the gradients of the scores, summed over the batch and along the tiles of each diagonal.

    All tiles of a block diagonal hold the same offsets, so that they are added as they are; see `diagonal_tiles`.
    """
    batch, length, heads, _ = inputs.query.shape
    block = settings.block_q
    query_tiles = length // block
    key_tiles = inputs.key.shape[1] // block
    diagonals = query_tiles + key_tiles - 1

    def place(head: Scalar, diagonal: Scalar, batch: Scalar, query: Scalar) -> Tile:
        key = jnp.clip(query + diagonal - (query_tiles - 1), 0, key_tiles - 1)
        return Tile(batch, head, query, key)

    specs, arrays = input_blocks(inputs, settings, place)
    gradient_specs, gradient_arrays = gradient_blocks(inputs, settings, out_gradient, log_sum, delta, place)
    (tiles,) = _call(
        partial(_bias_gradient_kernel, inputs=inputs, settings=settings),
        grid=(heads, diagonals, batch, query_tiles),
        specs=specs + gradient_specs,
        arrays=arrays + gradient_arrays,
        out_specs=[
            pl.BlockSpec((None, None, block, block), lambda head, diagonal, batch, query: (head, diagonal, 0, 0))
        ],
        out_shapes=[jax.ShapeDtypeStruct((heads, diagonals, block, block), jnp.float32)],
        scratch=[],
        settings=settings,
        name="flash_attention_bias_gradient",
        parallel=2,
    )
    return tiles


def _call(
    kernel: Callable[..., None],
    *,
    grid: tuple[int, ...],
    specs: Sequence[pl.BlockSpec],
    arrays: Sequence[Array],
    out_specs: Sequence[pl.BlockSpec],
    out_shapes: Sequence[jax.ShapeDtypeStruct],
    scratch: Sequence[tuple[int, int]],
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


def _column(row: Array) -> Array:
    """Return a row of lanes `[1, n]` as a column `[n, 1]`."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T[:, :1]


def _row(column: Array) -> Array:
    """Return a column `[n, 1]` as a row of lanes `[1, n]`."""
    return jnp.broadcast_to(column, (column.shape[0], LANES)).T[:1]


def _is_visible(refs: TileRefs, tile: Tile, settings: FlashSettings) -> Any:
    """Return whether a query of a tile may attend to a key of it, by their positions."""
    first_query = refs.scalars[0] + tile.query * settings.block_q
    first_key = tile.key * settings.block_k
    last_query = first_query + settings.block_q - 1
    last_key = first_key + settings.block_k - 1
    visible = first_key <= last_key
    if not settings.sees_later_keys:
        visible = first_key <= last_query
    if settings.window is not None:
        visible = visible & (first_query - last_key < settings.window) & (first_key - last_query < settings.window)
    return visible


def _scores(
    refs: TileRefs, tile: Tile, settings: FlashSettings
) -> tuple[Float[Array, "q m"], Bool[Array, "q m"], Bool[Array, "q m"] | None]:
    """Return the scores of one tile times log2(e), which keys are visible, and which weights dropout keeps."""
    shape = (settings.block_q, settings.block_k)
    first_query = refs.scalars[0] + tile.query * settings.block_q
    query_index = first_query + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    key_index = tile.key * settings.block_k + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    scores = dot(refs.query[...], refs.key[...], (1, 1)) * (settings.scale * LOG2_E)
    if refs.bias is not None:
        scores = scores + refs.bias[...]
    prefix = refs.prefix[...] if refs.prefix is not None else None
    segments = _column(refs.query_segments[...])
    mask = tile_mask(query_index, key_index, segments, refs.key_segments[...], prefix, settings)
    keep = None
    if settings.dropout > 0:
        head = refs.scalars[2] + tile.batch * refs.scalars[3] + tile.head
        keep = keep_mask(refs.scalars[1], head, query_index, key_index, settings.dropout)
    return jnp.where(mask, scores, MASK_VALUE), mask, keep


def _forward_kernel(*all_refs: Ref, inputs: FlashInputs, settings: FlashSettings) -> None:
    refs, (out_ref, log_sum_ref, sum_ref, largest_ref, total_ref) = split_refs(all_refs, inputs)
    tile = Tile(*(pl.program_id(axis) for axis in range(4)))

    @pl.when(tile.key == 0)
    def _begin() -> None:
        sum_ref[...] = jnp.zeros_like(sum_ref)
        largest_ref[...] = jnp.full_like(largest_ref, MASK_VALUE)
        total_ref[...] = jnp.zeros_like(total_ref)

    @pl.when(_is_visible(refs, tile, settings))
    def _add() -> None:
        scores, mask, keep = _scores(refs, tile, settings)
        largest = largest_ref[:, :1]
        new_largest = jnp.maximum(largest, jnp.max(scores, axis=1, keepdims=True))
        weights = jnp.where(mask, jnp.exp2(scores - new_largest), 0.0)
        correction = jnp.exp2(largest - new_largest)
        total = total_ref[:, :1] * correction + jnp.sum(weights, axis=1, keepdims=True)
        if keep is not None:
            weights = jnp.where(keep, weights, 0.0)
        value = refs.value[...]
        sum_ref[...] = sum_ref[...] * correction + dot(weights.astype(value.dtype), value, (1, 0))
        largest_ref[...] = jnp.broadcast_to(new_largest, largest_ref.shape)
        total_ref[...] = jnp.broadcast_to(total, total_ref.shape)

    @pl.when(tile.key == pl.num_programs(3) - 1)
    def _end() -> None:
        total = total_ref[:, :1]
        total = jnp.where(total == 0, 1.0, total)
        out_ref[...] = (sum_ref[...] / (total * (1 - settings.dropout))).astype(out_ref.dtype)
        log_sum_ref[...] = _row(largest_ref[:, :1] + jnp.log(total) * LOG2_E)


def _tile_gradients(
    refs: TileRefs, gradients: GradientRefs, tile: Tile, settings: FlashSettings
) -> tuple[Float[Array, "q m"], Float[Array, "q m"]]:
    """Return the weights after dropout, and the gradient of the scores of one tile."""
    scores, mask, keep = _scores(refs, tile, settings)
    return score_gradients(
        scores,
        mask,
        keep,
        _column(gradients.log_sum[...]),
        _column(gradients.delta[...]),
        dot(gradients.out_gradient[...], refs.value[...], (1, 1)),
        settings,
    )


def _query_gradient_kernel(*all_refs: Ref, inputs: FlashInputs, settings: FlashSettings) -> None:
    refs, remaining = split_refs(all_refs, inputs)
    gradients = GradientRefs(*remaining[:3])
    out_ref, sum_ref = remaining[3:]
    tile = Tile(*(pl.program_id(axis) for axis in range(4)))

    @pl.when(tile.key == 0)
    def _begin() -> None:
        sum_ref[...] = jnp.zeros_like(sum_ref)

    @pl.when(_is_visible(refs, tile, settings))
    def _add() -> None:
        key = refs.key[...]
        _, score_gradient = _tile_gradients(refs, gradients, tile, settings)
        sum_ref[...] += dot(score_gradient.astype(key.dtype), key, (1, 0))

    @pl.when(tile.key == pl.num_programs(3) - 1)
    def _end() -> None:
        out_ref[...] = (sum_ref[...] * settings.scale).astype(out_ref.dtype)


def _key_value_gradient_kernel(*all_refs: Ref, inputs: FlashInputs, settings: FlashSettings) -> None:
    refs, remaining = split_refs(all_refs, inputs)
    gradients = GradientRefs(*remaining[:3])
    key_ref, value_ref, key_sum_ref, value_sum_ref = remaining[3:]
    tile = Tile(pl.program_id(0), pl.program_id(1), query=pl.program_id(3), key=pl.program_id(2))

    @pl.when(tile.query == 0)
    def _begin() -> None:
        key_sum_ref[...] = jnp.zeros_like(key_sum_ref)
        value_sum_ref[...] = jnp.zeros_like(value_sum_ref)

    @pl.when(_is_visible(refs, tile, settings))
    def _add() -> None:
        query = refs.query[...]
        out_gradient = gradients.out_gradient[...]
        weights, score_gradient = _tile_gradients(refs, gradients, tile, settings)
        value_sum_ref[...] += dot(weights.astype(out_gradient.dtype), out_gradient, (0, 0))
        key_sum_ref[...] += dot(score_gradient.astype(query.dtype), query, (0, 0))

    @pl.when(tile.query == pl.num_programs(3) - 1)
    def _end() -> None:
        key_ref[...] = (key_sum_ref[...] * settings.scale).astype(key_ref.dtype)
        value_ref[...] = value_sum_ref[...].astype(value_ref.dtype)


def _bias_gradient_kernel(*all_refs: Ref, inputs: FlashInputs, settings: FlashSettings) -> None:
    refs, remaining = split_refs(all_refs, inputs)
    gradients = GradientRefs(*remaining[:3])
    tile_ref = remaining[3]
    batch = pl.program_id(2)
    query = pl.program_id(3)
    key_tiles = inputs.key.shape[1] // settings.block_k
    key = query + pl.program_id(1) - (pl.num_programs(3) - 1)
    tile = Tile(batch, pl.program_id(0), query, key)

    @pl.when((batch == 0) & (query == 0))
    def _begin() -> None:
        tile_ref[...] = jnp.zeros_like(tile_ref)

    @pl.when((key >= 0) & (key < key_tiles) & _is_visible(refs, tile, settings))
    def _add() -> None:
        _, score_gradient = _tile_gradients(refs, gradients, tile, settings)
        tile_ref[...] += score_gradient
