"""The blocks of the grids of flash attention on TPUs: which tile of each array a step of a grid sees."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from t5x_lite.models.attention.flash_tiles import FlashInputs, FlashSettings, Ref, Scalar

LANES = 128
"""Values of a row of the core's memory."""


@dataclass(frozen=True)
class Tile:
    """The place of a tile: row of the batch, and numbers of its blocks of heads, of queries and of keys."""

    batch: Scalar
    head_block: Scalar
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


def query_spec(settings: FlashSettings, place: Place) -> pl.BlockSpec:
    """Return the block of an array `[b, l, c]` with the queries of a tile."""

    def block(*ids: Scalar) -> tuple[Scalar, ...]:
        tile = place(*ids)
        return tile.batch, tile.query, tile.head_block

    return pl.BlockSpec((None, settings.block_q, LANES), block)


def query_row_spec(settings: FlashSettings, place: Place) -> pl.BlockSpec:
    """Return the block of an array `[b, n, h, l]` with a value for each query of the h heads of each of n blocks."""

    def block(*ids: Scalar) -> tuple[Scalar, ...]:
        tile = place(*ids)
        return tile.batch, tile.head_block, 0, tile.query

    return pl.BlockSpec((None, None, settings.heads_per_block, settings.block_q), block)


def key_spec(inputs: FlashInputs, settings: FlashSettings, place: Place) -> pl.BlockSpec:
    """Return the block of an array `[b, m, c]` with the keys of a tile."""
    groups = head_groups(inputs)

    def block(*ids: Scalar) -> tuple[Scalar, ...]:
        tile = place(*ids)
        return tile.batch, tile.key, tile.head_block // groups

    return pl.BlockSpec((None, settings.block_k, LANES), block)


def head_groups(inputs: FlashInputs) -> int:
    """Return how many query heads share a key head."""
    return inputs.query.shape[2] // inputs.key.shape[2]


def input_blocks(inputs: FlashInputs, settings: FlashSettings, place: Place) -> tuple[list[pl.BlockSpec], list[Array]]:
    """Return the block specs and the arrays of the inputs, in the order of `TileRefs`."""
    query_tiles = inputs.query.shape[1] // settings.block_q
    spec_of_keys = key_spec(inputs, settings, place)

    def query_segments_block(*ids: Scalar) -> tuple[Scalar, ...]:
        tile = place(*ids)
        return tile.batch, 0, tile.query

    def key_row_block(*ids: Scalar) -> tuple[Scalar, ...]:
        tile = place(*ids)
        return tile.batch, 0, tile.key

    def bias_block(*ids: Scalar) -> tuple[Scalar, ...]:
        tile = place(*ids)
        return tile.head_block, tile.key - tile.query + query_tiles - 1, 0, 0

    key_row_spec = pl.BlockSpec((None, 1, settings.block_k), key_row_block)
    specs = [
        pl.BlockSpec(memory_space=pltpu.SMEM),
        query_spec(settings, place),
        spec_of_keys,
        spec_of_keys,
        pl.BlockSpec((None, 1, settings.block_q), query_segments_block),
        key_row_spec,
    ]
    arrays = [
        inputs.scalars,
        inputs.query,
        inputs.key,
        inputs.value,
        inputs.query_segments[:, None],
        inputs.key_segments[:, None],
    ]
    if inputs.prefix is not None:
        specs.append(key_row_spec)
        arrays.append(inputs.prefix[:, None])
    if inputs.bias_tiles is not None:
        block = (settings.heads_per_block, None, settings.block_q, settings.block_k)
        specs.append(pl.BlockSpec(block, bias_block))
        arrays.append(inputs.bias_tiles)
    return specs, arrays


def split_refs(refs: Sequence[Ref], inputs: FlashInputs) -> tuple[TileRefs, list[Ref]]:
    """Return the references to the inputs, and those that follow them."""
    remaining = list(refs)
    names = ["scalars", "query", "key", "value", "query_segments", "key_segments"]
    named = {name: remaining.pop(0) for name in names}
    named["prefix"] = remaining.pop(0) if inputs.prefix is not None else None
    named["bias"] = remaining.pop(0) if inputs.bias_tiles is not None else None
    return TileRefs(**named), remaining
