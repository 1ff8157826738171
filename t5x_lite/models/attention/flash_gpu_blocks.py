"""The blocks of the grids of flash attention on GPUs: which parts of the arrays a program of a grid sees."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float

from t5x_lite.models.attention.context import MASK_VALUE
from t5x_lite.models.attention.flash_tiles import (
    LOG2_E,
    FlashInputs,
    FlashSettings,
    Ref,
    Scalar,
    dot,
    keep_mask,
    tile_mask,
)


@dataclass(frozen=True)
class ProgramRefs:
    """References to the inputs of one program: one row of the batch and one head."""

    scalars: Ref
    query: Ref
    key: Ref
    value: Ref
    query_segments: Ref
    key_segments: Ref
    prefix: Ref | None
    bias: Ref | None
    batch: Scalar
    head: Scalar
    settings: FlashSettings

    def scores(
        self, query: Float[Array, "q k"], key: Float[Array, "m k"], query_start: Scalar, key_start: Scalar
    ) -> tuple[Float[Array, "q m"], Bool[Array, "q m"], Bool[Array, "q m"] | None]:
        """Return the scores of one tile times log2(e), which keys are visible, and which weights dropout keeps."""
        settings = self.settings
        block_q = query.shape[0]
        block_k = key.shape[0]
        query_index = self.scalars[0] + query_start + jnp.arange(block_q)[:, None]
        key_index = key_start + jnp.arange(block_k)[None, :]
        scores = dot(query, key, (1, 1)) * (settings.scale * LOG2_E)
        if self.bias is not None:
            rows = self.query.shape[0] // block_q
            diagonal = key_start // block_k - query_start // block_q + rows - 1
            scores = scores + self.bias[diagonal]
        prefix = None
        if self.prefix is not None:
            prefix = load_row(self.prefix, key_start, block_k)
        mask = tile_mask(
            query_index,
            key_index,
            load_column(self.query_segments, query_start, block_q),
            load_row(self.key_segments, key_start, block_k),
            prefix,
            settings,
        )
        keep = None
        if settings.dropout > 0:
            head = self.scalars[2] + self.batch * self.scalars[3] + self.head
            keep = keep_mask(self.scalars[1], head, query_index, key_index, settings.dropout)
        return jnp.where(mask, scores, MASK_VALUE), mask, keep


def load_column(ref: Ref, start: Scalar, size: int) -> Array:
    return ref[pl.ds(start, size)][:, None]


def load_row(ref: Ref, start: Scalar, size: int) -> Array:
    return ref[pl.ds(start, size)][None, :]


def split_refs(
    refs: tuple[Ref, ...], inputs: FlashInputs, settings: FlashSettings, batch: Scalar, head: Scalar
) -> tuple[ProgramRefs, list[Ref]]:
    """Return the references to the inputs, and those that follow them."""
    remaining = list(refs)
    names = ["scalars", "query", "key", "value", "query_segments", "key_segments"]
    optional: dict[str, Ref | None] = {"prefix": None, "bias": None}
    named = {name: remaining.pop(0) for name in names}
    if inputs.prefix is not None:
        optional["prefix"] = remaining.pop(0)
    if inputs.bias_tiles is not None:
        optional["bias"] = remaining.pop(0)
    return ProgramRefs(**named, **optional, batch=batch, head=head, settings=settings), remaining


ProgramPlace = Callable[..., tuple[Scalar, Scalar]]
"""A function from the ids of a program to its row of the batch and its head."""


def input_specs(inputs: FlashInputs, place: ProgramPlace) -> tuple[list[pl.BlockSpec], list[Array]]:
    """Return the block specs and the arrays of the inputs."""
    length, heads, width = inputs.query.shape[1:]
    keys, kv_heads = inputs.key.shape[1:3]
    groups = heads // kv_heads

    def query_block(*ids: Scalar) -> tuple[Scalar, ...]:
        batch, head = place(*ids)
        return batch, 0, head, 0

    def key_block(*ids: Scalar) -> tuple[Scalar, ...]:
        batch, head = place(*ids)
        return batch, 0, head // groups, 0

    def row_block(*ids: Scalar) -> tuple[Scalar, ...]:
        return place(*ids)[0], 0

    def bias_block(*ids: Scalar) -> tuple[Scalar, ...]:
        return place(*ids)[1], 0, 0, 0

    def scalars_block(*ids: Scalar) -> tuple[Scalar, ...]:
        return (0,)

    specs = [
        pl.BlockSpec((4,), scalars_block),
        pl.BlockSpec((None, length, None, width), query_block),
        pl.BlockSpec((None, keys, None, width), key_block),
        pl.BlockSpec((None, keys, None, width), key_block),
        pl.BlockSpec((None, length), row_block),
        pl.BlockSpec((None, keys), row_block),
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
        specs.append(pl.BlockSpec((None, keys), row_block))
        arrays.append(inputs.prefix)
    if inputs.bias_tiles is not None:
        specs.append(pl.BlockSpec((None, *inputs.bias_tiles.shape[1:]), bias_block))
        arrays.append(inputs.bias_tiles)
    return specs, arrays


def gradient_specs(inputs: FlashInputs, place: ProgramPlace) -> list[pl.BlockSpec]:
    """Return the block specs of the gradient of the output, the log-sums and delta."""
    length, _, width = inputs.query.shape[1:]

    def out_block(*ids: Scalar) -> tuple[Scalar, ...]:
        batch, head = place(*ids)
        return batch, 0, head, 0

    def row_block(*ids: Scalar) -> tuple[Scalar, ...]:
        batch, head = place(*ids)
        return batch, head, 0

    return [
        pl.BlockSpec((None, length, None, width), out_block),
        pl.BlockSpec((None, None, length), row_block),
        pl.BlockSpec((None, None, length), row_block),
    ]


def batch_and_head(batch: Scalar, head: Scalar, tile: Scalar) -> tuple[Scalar, Scalar]:
    return batch, head


def tile_spec(block: int, width: int) -> pl.BlockSpec:
    def tile_block(batch: Scalar, head: Scalar, tile: Scalar) -> tuple[Scalar, ...]:
        return batch, tile, head, 0

    return pl.BlockSpec((None, block, None, width), tile_block)
