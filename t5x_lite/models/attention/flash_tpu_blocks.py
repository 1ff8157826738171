"""The blocks of the grids of flash attention on TPUs: which tile of each array a step of a grid sees."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from t5x_lite.models.attention.flash_tiles import FlashInputs, FlashSettings, Ref, Scalar


@dataclass(frozen=True)
class Tile:
    """The place of a tile: row of the batch, head, and number of its block of queries and of its block of keys."""

    batch: Scalar
    head: Scalar
    query: Scalar
    key: Scalar


Place: TypeAlias = Callable[..., Tile]
"""A function from the ids of a step of the grid to its tile."""


@dataclass(frozen=True)
class TileRefs:
    """References to the inputs of one tile."""

    scalars: Ref
    query: Ref
    key: Ref
    value: Ref
    query_segments: Ref
    key_segments: Ref
    prefix: Ref | None
    bias: Ref | None


def query_spec(settings: FlashSettings, width: int, place: Place) -> pl.BlockSpec:
    """Return the block of an array `[b, h, l, width]` with the queries of a tile."""

    def block(*ids: Scalar) -> tuple[Scalar, ...]:
        tile = place(*ids)
        return tile.batch, tile.head, tile.query, 0

    return pl.BlockSpec((None, None, settings.block_q, width), block)


def query_row_spec(settings: FlashSettings, place: Place) -> pl.BlockSpec:
    """Return the block of an array `[b, h, 1, l]` with a value for each query of a tile."""

    def block(*ids: Scalar) -> tuple[Scalar, ...]:
        tile = place(*ids)
        return tile.batch, tile.head, 0, tile.query

    return pl.BlockSpec((None, None, 1, settings.block_q), block)


def key_spec(settings: FlashSettings, width: int, place: Place, groups: int) -> pl.BlockSpec:
    """Return the block of an array `[b, n, m, width]` with the keys of a tile; `groups` heads share its keys."""

    def block(*ids: Scalar) -> tuple[Scalar, ...]:
        tile = place(*ids)
        return tile.batch, tile.head // groups, tile.key, 0

    return pl.BlockSpec((None, None, settings.block_k, width), block)


def input_blocks(inputs: FlashInputs, settings: FlashSettings, place: Place) -> tuple[list[pl.BlockSpec], list[Array]]:
    """Return the block specs and the arrays of the inputs, in the order of `TileRefs`."""
    length, heads, width = inputs.query.shape[1:]
    query_tiles = length // settings.block_q
    spec_of_keys = key_spec(settings, width, place, groups=heads // inputs.key.shape[2])

    def query_segments_block(*ids: Scalar) -> tuple[Scalar, ...]:
        tile = place(*ids)
        return tile.batch, 0, tile.query

    def key_row_block(*ids: Scalar) -> tuple[Scalar, ...]:
        tile = place(*ids)
        return tile.batch, 0, tile.key

    def bias_block(*ids: Scalar) -> tuple[Scalar, ...]:
        tile = place(*ids)
        return tile.head, tile.key - tile.query + query_tiles - 1, 0, 0

    key_row_spec = pl.BlockSpec((None, 1, settings.block_k), key_row_block)
    specs = [
        pl.BlockSpec(memory_space=pltpu.SMEM),
        query_spec(settings, width, place),
        spec_of_keys,
        spec_of_keys,
        pl.BlockSpec((None, 1, settings.block_q), query_segments_block),
        key_row_spec,
    ]
    arrays = [
        inputs.scalars,
        inputs.query.swapaxes(1, 2),
        inputs.key.swapaxes(1, 2),
        inputs.value.swapaxes(1, 2),
        inputs.query_segments[:, None],
        inputs.key_segments[:, None],
    ]
    if inputs.prefix is not None:
        specs.append(key_row_spec)
        arrays.append(inputs.prefix[:, None])
    if inputs.bias is not None:
        specs.append(pl.BlockSpec((None, None, settings.block_q, settings.block_k), bias_block))
        arrays.append(inputs.bias)
    return specs, arrays


def gradient_blocks(
    inputs: FlashInputs,
    settings: FlashSettings,
    out_gradient: Float[Array, "b l h k"],
    log_sum: Float[Array, "b h l"],
    delta: Float[Array, "b h l"],
    place: Place,
) -> tuple[list[pl.BlockSpec], list[Array]]:
    """Return the block specs and the arrays of what the backward pass reads, in the order of `GradientRefs`."""
    row_spec = query_row_spec(settings, place)
    specs = [query_spec(settings, inputs.query.shape[3], place), row_spec, row_spec]
    return specs, [out_gradient.swapaxes(1, 2), log_sum[:, :, None], delta[:, :, None]]


def split_refs(refs: Sequence[Ref], inputs: FlashInputs) -> tuple[TileRefs, list[Ref]]:
    """Return the references to the inputs, and those that follow them."""
    remaining = list(refs)
    names = ["scalars", "query", "key", "value", "query_segments", "key_segments"]
    named = {name: remaining.pop(0) for name in names}
    named["prefix"] = remaining.pop(0) if inputs.prefix is not None else None
    named["bias"] = remaining.pop(0) if inputs.bias is not None else None
    return TileRefs(**named), remaining
