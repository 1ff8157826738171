"""The arithmetic of one tile of flash attention: which keys are visible, what dropout keeps, and the bias.

A tile holds the scores of `block_q` queries and `block_k` keys.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

LOG2_E = 1.4426950408889634
"""Scores are multiplied by log2(e), so that the kernels can use exp2."""
GOLDEN_RATIO = np.uint32(0x9E3779B9)
"""2^32 over the golden ratio: its multiples by small numbers lie far apart (Knuth, vol. 3, §6.4)."""

Ref: TypeAlias = Any
"""A reference to an array in the memory of the device, as Pallas passes it to a kernel."""
Scalar: TypeAlias = Any
"""An integer that is known when the kernel runs."""


@dataclass(frozen=True)
class FlashSettings:
    """Values that are fixed when a kernel is compiled.

    Attributes:
        scale: factor on the scores.
        causal: a query attends to no later key.
        window: a query attends to keys less than `window` positions away; None is all.
        has_prefix: keys of a prefix are visible to earlier queries too.
        dropout: share of the attention weights dropped.
        block_q, block_k: queries and keys of a tile; equal where there is a bias.
        warps, stages: warps of a program and depth of its software pipeline; None chooses by head_dim.
        on_tpu: the kernels are those for TPUs.
        heads_per_block: heads whose channels fill a row of lanes of a TPU together.
        interpret: run in Pallas's interpreter.
    """

    scale: float
    causal: bool
    window: int | None = None
    has_prefix: bool = False
    dropout: float = 0.0
    block_q: int = 64
    block_k: int = 64
    warps: int | None = None
    stages: int = 2
    on_tpu: bool = False
    heads_per_block: int = 1
    interpret: bool = False

    @property
    def sees_later_keys(self) -> bool:
        """A query may attend to keys after its own position."""
        return not self.causal or self.has_prefix


@dataclass(frozen=True)
class GradientRefs:
    """References to what a kernel of the backward pass reads beside the inputs."""

    out_gradient: Ref
    log_sum: Ref
    delta: Ref


@dataclass(frozen=True)
class FlashGradients:
    """The gradients of one call, each in the shape of the input of its name."""

    query: Array
    key: Array
    value: Array
    bias: Array | None


@dataclass(frozen=True)
class FlashInputs:
    """The arrays of one call.

    Attributes:
        query, key, value: h query heads share n key heads in order; `pack_heads` of the kernels gives them the shape
            that they read.
        query_segments, key_segments: the document of each token; 0 is padding.
        prefix: 1 where a key belongs to the prefix.
        bias: bias of head h at the offset key - query = x - (l - 1).
        scalars: index of the first query in the row, the seed of dropout, the number of the first attention matrix
            among those of the whole batch, and the heads of a row, of which this device may have some.
        bias_tiles: `diagonal_tiles` of the bias, which the kernels read.
    """

    query: Float[Array, "b l ..."]
    key: Float[Array, "b m ..."]
    value: Float[Array, "b m ..."]
    query_segments: Int[Array, "b l"]
    key_segments: Int[Array, "b m"]
    prefix: Int[Array, "b m"] | None
    bias: Float[Array, "h x"] | None
    scalars: Int[Array, "4"]
    bias_tiles: Float[Array, "h d q m"] | None = None


jax.tree_util.register_dataclass(FlashInputs)


def key_blocks(start: Array, count: int, keys: int, settings: FlashSettings) -> tuple[Any, Any]:
    """Return the first block of keys that the queries at `[start, start + count)` attend to, and one past the last."""
    blocks = keys // settings.block_k
    lower: Any = 0
    upper: Any = blocks
    if settings.window is not None:
        lower = jnp.maximum(start - settings.window + 1, 0) // settings.block_k
    reach = start + count
    if settings.sees_later_keys:
        if settings.window is None:
            return lower, upper
        reach = reach + settings.window - 1
    upper = jnp.minimum((reach + settings.block_k - 1) // settings.block_k, blocks)
    return lower, upper


def query_blocks(start: Array, first_query: Array, queries: int, settings: FlashSettings) -> tuple[Any, Any]:
    """Return the first block of queries that attend to keys at `[start, start + block_k)`, and one past the last."""
    blocks = queries // settings.block_q
    lower: Any = 0
    upper: Any = blocks
    if not settings.sees_later_keys:
        lower = jnp.minimum(jnp.maximum(start - first_query, 0) // settings.block_q, blocks)
    elif settings.window is not None:
        lower = jnp.minimum(jnp.maximum(start - settings.window + 1 - first_query, 0) // settings.block_q, blocks)
    if settings.window is not None:
        reach = jnp.maximum(start + settings.block_k + settings.window - 1 - first_query, 0)
        upper = jnp.minimum((reach + settings.block_q - 1) // settings.block_q, blocks)
    return lower, upper


def tile_mask(
    query: Int[Array, "q 1"],
    key: Int[Array, "1 k"],
    query_segments: Int[Array, "q 1"],
    key_segments: Int[Array, "1 k"],
    prefix: Int[Array, "1 k"] | None,
    settings: FlashSettings,
) -> Bool[Array, "q k"]:
    """Return which keys of a tile each query attends to; `query` and `key` are positions in the row."""
    mask = (query_segments == key_segments) & (key_segments > 0)
    if settings.causal:
        visible = key <= query
        if prefix is not None:
            visible = visible | (prefix > 0)
        mask = mask & visible
    if settings.window is not None:
        distance = query - key
        mask = mask & (distance < settings.window) & (distance > -settings.window)
    return mask


def keep_mask(
    seed: Scalar, head: Scalar | Int[Array, "..."], query: Int[Array, "..."], key: Int[Array, "..."], rate: float
) -> Bool[Array, "..."]:
    """Return which attention weights dropout keeps: a hash of the seed and of the weight's position.

    It is a function of positions alone, so that forward and backward passes, tiles of any size, any mesh and the dense
    form agree. The finalizer of MurmurHash3 (Appleby 2011) mixes the bits after each part, or the masks of neighbouring
    seeds and heads would be shifted copies of each other.

    Args:
        seed: seed of the step and the layer.
        head: number of the attention matrix over the rows and heads of the whole batch.
        query: positions of the queries in the row.
        key: positions of the keys.
        rate: share that is dropped.
    """
    per_head = _mix(jnp.uint32(head) * GOLDEN_RATIO + jnp.uint32(seed))
    per_row = _mix(per_head + query.astype(jnp.uint32))
    bits = _mix(per_row ^ (key.astype(jnp.uint32) * GOLDEN_RATIO))
    return (bits >> np.uint32(8)).astype(jnp.int32) >= round(rate * 2**24)


def _mix(x: Array) -> Array:
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """Return the product of two matrices that sums one axis of each, in float32."""
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def score_gradients(
    scores: Float[Array, "q k"],
    mask: Bool[Array, "q k"],
    keep: Bool[Array, "q k"] | None,
    log_sum: Float[Array, "q 1"],
    delta: Float[Array, "q 1"],
    weight_gradient: Float[Array, "q k"],
    settings: FlashSettings,
) -> tuple[Float[Array, "q k"], Float[Array, "q k"]]:
    """Return the weights of a tile after dropout, and the gradient of its scores (Dao et al. 2022, algorithm 4).

    Args:
        scores: the scores times log2(e).
        mask: which keys are visible.
        keep: which weights dropout keeps.
        log_sum: logarithm to base 2 of the sum of the exponentiated scores of each row.
        delta: sum over the channels of the output times its gradient.
        weight_gradient: gradient of the weights after dropout.
        settings: those of the kernel.
    """
    weights = jnp.where(mask, jnp.exp2(scores - log_sum), 0.0)
    dropped = weights
    if keep is not None:
        scale = 1 / (1 - settings.dropout)
        weight_gradient = jnp.where(keep, weight_gradient * scale, 0.0)
        dropped = jnp.where(keep, weights * scale, 0.0)
    return dropped, weights * (weight_gradient - delta)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def diagonal_tiles(bias: Float[Array, "h x"], block: int) -> Float[Array, "h d q k"]:
    """Return a bias by offset as square tiles: entry (i, j) of tile d is `bias[d * block + block - 1 + j - i]`.

    All tiles of a block diagonal of the matrix of scores are equal, so that the tiles take memory linear in the length.
    Kernels read them as they are. The gradient is `sum_diagonals`.
    """
    count = bias.shape[1] // block - 1
    inside = block - 1 + jnp.arange(block)[None, :] - jnp.arange(block)[:, None]
    return bias[:, jnp.arange(count)[:, None, None] * block + inside]


def sum_diagonals(tiles: Float[Array, "h d q k"]) -> Float[Array, "h x"]:
    """Return the sums over the diagonals of all tiles: the transpose of `diagonal_tiles`.

    Rows are skewed by a reshape: row i of a tile moves to column `j + (block - 1 - i)`, so that a diagonal becomes a
    column.
    """
    heads, diagonals, block, _ = tiles.shape
    wide = jnp.pad(tiles[:, :, ::-1], [(0, 0), (0, 0), (0, 0), (0, block)])
    flat = wide.reshape(heads, diagonals, 2 * block * block)[:, :, : block * (2 * block - 1)]
    sums = flat.reshape(heads, diagonals, block, 2 * block - 1).sum(2)
    return add_overlaps(jnp.pad(sums, [(0, 0), (0, 0), (0, 1)]))


def add_overlaps(sums: Float[Array, "h d c"]) -> Float[Array, "h x"]:
    """Return the sums of all diagonals: the c columns of tile d begin at `d * c / 2`."""
    heads, diagonals, columns = sums.shape
    block = columns // 2
    low = sums[:, :, :block].reshape(heads, diagonals * block)
    high = sums[:, :, block:].reshape(heads, diagonals * block)
    return jnp.pad(low, [(0, 0), (0, block)]) + jnp.pad(high, [(0, 0), (block, 0)])


diagonal_tiles.defvjp(
    lambda bias, block: (diagonal_tiles(bias, block), None),
    lambda block, _, gradient: (sum_diagonals(gradient),),
)
