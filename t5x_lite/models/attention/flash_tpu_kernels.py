"""The kernels of flash attention for TPUs: what one step of a grid does with the tiles that it sees.

Of a block of several heads, the scores of one come from the product of all lanes after the lanes of the other heads are
set to zero: a product that sums over fewer lanes takes as long.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from t5x_lite.models.attention.context import MASK_VALUE
from t5x_lite.models.attention.flash_tiles import (
    LOG2_E,
    FlashInputs,
    FlashSettings,
    GradientRefs,
    Ref,
    dot,
    keep_mask,
    score_gradients,
    tile_mask,
)
from t5x_lite.models.attention.flash_tpu_blocks import LANES, Tile, TileRefs, head_groups, split_refs


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


def _head_lanes(x: Float[Array, "q c"], head: int, settings: FlashSettings) -> Float[Array, "q c"]:
    """Set the lanes of the other heads of a block to zero."""
    if settings.heads_per_block == 1:
        return x
    return jnp.where(_is_lane_of(head, x.shape, settings), x, jnp.zeros_like(x))


def _store_lanes(ref: Ref, x: Float[Array, "q c"], head: int, settings: FlashSettings) -> None:
    """Store the lanes of one head."""
    if settings.heads_per_block > 1:
        x = jnp.where(_is_lane_of(head, x.shape, settings), x, ref[...])
    ref[...] = x


def _is_lane_of(head: int, shape: tuple[int, ...], settings: FlashSettings) -> Bool[Array, "q c"]:
    """Return which lanes belong to a head of a block."""
    width = LANES // settings.heads_per_block
    lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    return (lane >= head * width) & (lane < (head + 1) * width)


@dataclass(frozen=True)
class _Pairs:
    """The pairs of a query and a key of a tile: their positions, and which are visible. All heads have the same."""

    query_index: Int[Array, "q m"]
    key_index: Int[Array, "q m"]
    visible: Bool[Array, "q m"]


def _pairs(refs: TileRefs, tile: Tile, settings: FlashSettings) -> _Pairs:
    shape = (settings.block_q, settings.block_k)
    first_query = refs.scalars[0] + tile.query * settings.block_q
    query_index = first_query + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    key_index = tile.key * settings.block_k + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    prefix = refs.prefix[...] if refs.prefix is not None else None
    segments = _column(refs.query_segments[...])
    visible = tile_mask(query_index, key_index, segments, refs.key_segments[...], prefix, settings)
    return _Pairs(query_index, key_index, visible)


def _scores(
    query: Float[Array, "q c"], refs: TileRefs, tile: Tile, head: int, pairs: _Pairs, settings: FlashSettings
) -> tuple[Float[Array, "q m"], Bool[Array, "q m"] | None]:
    """Return the scores of one head of a tile times log2(e), and which weights dropout keeps."""
    scores = dot(query, refs.key[...], (1, 1)) * (settings.scale * LOG2_E)
    if refs.bias is not None:
        scores = scores + refs.bias[head]
    keep = None
    if settings.dropout > 0:
        number = refs.scalars[2] + tile.batch * refs.scalars[3] + tile.head_block * settings.heads_per_block + head
        keep = keep_mask(refs.scalars[1], number, pairs.query_index, pairs.key_index, settings.dropout)
    return jnp.where(pairs.visible, scores, MASK_VALUE), keep


def forward_kernel(*all_refs: Ref, inputs: FlashInputs, settings: FlashSettings) -> None:
    refs, (out_ref, log_sum_ref, sum_ref, largest_ref, total_ref) = split_refs(all_refs, inputs)
    tile = Tile(*(pl.program_id(axis) for axis in range(4)))
    heads = range(settings.heads_per_block)

    @pl.when(tile.key == 0)
    def _begin() -> None:
        sum_ref[...] = jnp.zeros_like(sum_ref)
        largest_ref[...] = jnp.full_like(largest_ref, MASK_VALUE)
        total_ref[...] = jnp.zeros_like(total_ref)

    @pl.when(_is_visible(refs, tile, settings))
    def _add() -> None:
        pairs = _pairs(refs, tile, settings)
        value = refs.value[...]
        for head in heads:
            query = _head_lanes(refs.query[...], head, settings)
            scores, keep = _scores(query, refs, tile, head, pairs, settings)
            largest = largest_ref[head][:, :1]
            new_largest = jnp.maximum(largest, jnp.max(scores, axis=1, keepdims=True))
            weights = jnp.where(pairs.visible, jnp.exp2(scores - new_largest), 0.0)
            correction = jnp.exp2(largest - new_largest)
            total = total_ref[head][:, :1] * correction + jnp.sum(weights, axis=1, keepdims=True)
            if keep is not None:
                weights = jnp.where(keep, weights, 0.0)
            out = sum_ref[...] * correction + dot(weights.astype(value.dtype), value, (1, 0))
            _store_lanes(sum_ref, out, head, settings)
            largest_ref[head] = jnp.broadcast_to(new_largest, largest_ref.shape[1:])
            total_ref[head] = jnp.broadcast_to(total, total_ref.shape[1:])

    @pl.when(tile.key == pl.num_programs(3) - 1)
    def _end() -> None:
        for head in heads:
            total = total_ref[head][:, :1]
            total = jnp.where(total == 0, 1.0, total)
            _store_lanes(sum_ref, sum_ref[...] / (total * (1 - settings.dropout)), head, settings)
            log_sum_ref[head : head + 1] = _row(largest_ref[head][:, :1] + jnp.log(total) * LOG2_E)
        out_ref[...] = sum_ref[...].astype(out_ref.dtype)


@dataclass(frozen=True)
class _HeadGradients:
    """Factors of the gradients of one head of a tile. `weights` are those after dropout."""

    query: Float[Array, "q c"]
    out_gradient: Float[Array, "q c"]
    weights: Float[Array, "q m"]
    score_gradient: Float[Array, "q m"]


def _head_gradients(
    refs: TileRefs, gradients: GradientRefs, tile: Tile, head: int, pairs: _Pairs, settings: FlashSettings
) -> _HeadGradients:
    query = _head_lanes(refs.query[...], head, settings)
    scores, keep = _scores(query, refs, tile, head, pairs, settings)
    out_gradient = _head_lanes(gradients.out_gradient[...], head, settings)
    weights, score_gradient = score_gradients(
        scores,
        pairs.visible,
        keep,
        _column(gradients.log_sum[head : head + 1]),
        _column(gradients.delta[head : head + 1]),
        dot(out_gradient, refs.value[...], (1, 1)),
        settings,
    )
    return _HeadGradients(query, out_gradient, weights, score_gradient)


def query_gradient_kernel(*all_refs: Ref, inputs: FlashInputs, settings: FlashSettings) -> None:
    refs, remaining = split_refs(all_refs, inputs)
    out_gradient_ref, log_sum_ref, out_ref, query_ref, delta_ref, sum_ref = remaining
    gradients = GradientRefs(out_gradient_ref, log_sum_ref, delta_ref)
    tile = Tile(*(pl.program_id(axis) for axis in range(4)))

    @pl.when(tile.key == 0)
    def _begin() -> None:
        sum_ref[...] = jnp.zeros_like(sum_ref)
        product = out_ref[...].astype(jnp.float32) * out_gradient_ref[...].astype(jnp.float32)
        for head in range(settings.heads_per_block):
            delta_ref[head : head + 1] = _row(jnp.sum(_head_lanes(product, head, settings), axis=1, keepdims=True))

    @pl.when(_is_visible(refs, tile, settings))
    def _add() -> None:
        key = refs.key[...]
        pairs = _pairs(refs, tile, settings)
        for head in range(settings.heads_per_block):
            computed = _head_gradients(refs, gradients, tile, head, pairs, settings)
            gradient = dot(computed.score_gradient.astype(key.dtype), key, (1, 0))
            sum_ref[...] += _head_lanes(gradient, head, settings)

    @pl.when(tile.key == pl.num_programs(3) - 1)
    def _end() -> None:
        query_ref[...] = (sum_ref[...] * settings.scale).astype(query_ref.dtype)


def key_value_gradient_kernel(*all_refs: Ref, inputs: FlashInputs, settings: FlashSettings) -> None:
    refs, remaining = split_refs(all_refs, inputs)
    gradients = GradientRefs(*remaining[:3])
    key_ref, value_ref, key_sum_ref, value_sum_ref = remaining[3:]
    query_tiles = inputs.query.shape[1] // settings.block_q
    step = pl.program_id(3)
    head_block = pl.program_id(1) * head_groups(inputs) + step // query_tiles
    tile = Tile(pl.program_id(0), head_block, query=step % query_tiles, key=pl.program_id(2))

    @pl.when(step == 0)
    def _begin() -> None:
        key_sum_ref[...] = jnp.zeros_like(key_sum_ref)
        value_sum_ref[...] = jnp.zeros_like(value_sum_ref)

    @pl.when(_is_visible(refs, tile, settings))
    def _add() -> None:
        pairs = _pairs(refs, tile, settings)
        for head in range(settings.heads_per_block):
            computed = _head_gradients(refs, gradients, tile, head, pairs, settings)
            out_gradient = computed.out_gradient
            value_sum_ref[...] += dot(computed.weights.astype(out_gradient.dtype), out_gradient, (0, 0))
            query = computed.query
            key_sum_ref[...] += dot(computed.score_gradient.astype(query.dtype), query, (0, 0))

    @pl.when(step == pl.num_programs(3) - 1)
    def _end() -> None:
        key_ref[...] = (key_sum_ref[...] * settings.scale).astype(key_ref.dtype)
        value_ref[...] = value_sum_ref[...].astype(value_ref.dtype)


def bias_gradient_kernel(*all_refs: Ref, inputs: FlashInputs, settings: FlashSettings) -> None:
    refs, remaining = split_refs(all_refs, inputs)
    gradients = GradientRefs(*remaining[:3])
    sums_ref, tile_ref = remaining[3:]
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
        pairs = _pairs(refs, tile, settings)
        for head in range(settings.heads_per_block):
            tile_ref[head] += _head_gradients(refs, gradients, tile, head, pairs, settings).score_gradient

    @pl.when((batch == pl.num_programs(2) - 1) & (query == pl.num_programs(3) - 1))
    def _end() -> None:
        for head in range(settings.heads_per_block):
            sums_ref[head] = jnp.sum(_skew(tile_ref[head]), axis=0, keepdims=True)


def _skew(tile: Float[Array, "n n"]) -> Float[Array, "n m"]:
    """Return a tile with row i moved right by `n - 1 - i` columns, so that a diagonal becomes a column.

    Each bit of the distance is a move of half of the rows.
    """
    size = len(tile)
    wide = jnp.concatenate([tile, jnp.zeros_like(tile)], axis=1)
    distance = size - 1 - jax.lax.broadcasted_iota(jnp.int32, wide.shape, 0)
    step = 1
    while step < size:
        moved = pltpu.roll(wide, step, axis=1)
        wide = jnp.where((distance & step) > 0, moved, wide)
        step *= 2
    return wide
