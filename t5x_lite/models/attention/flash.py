"""Flash attention in Pallas: what XLA, cuDNN and splash attention do not fuse (Dao et al. 2022; Dao 2023).

Adds a bias that depends on the distance alone, and returns its gradient; masks by segments of queries and keys, by
causality, by a prefix, and by a window; drops attention weights. No array of queries x keys reaches the memory of the
device. The kernels work on tiles of `block_q` queries by `block_k` keys; this file holds the mathematics of one tile
and the padding around the kernels of `flash_gpu.py`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

LOG2_E = 1.4426950408889634
MASK_VALUE = -1e30
"""The score of a masked key; finite, so that a row without any key does not become NaN."""


@dataclass(frozen=True)
class FlashSettings:
    """What is fixed when a kernel is compiled.

    `window`: a query sees the keys less than `window` positions away; None is all. `has_prefix`: keys of a prefix are
    seen by earlier queries too. `bias_gradient`: whether the bias is trained.
    """

    scale: float
    causal: bool
    window: int | None = None
    has_prefix: bool = False
    dropout: float = 0.0
    bias_gradient: bool = True
    block_q: int = 64
    block_k: int = 64
    warps: int | None = None
    stages: int = 2
    interpret: bool = False

    @property
    def sees_later_keys(self) -> bool:
        """Whether a query may see keys after its own position."""
        return not self.causal or self.has_prefix


@dataclass(frozen=True)
class FlashInputs:
    """The arrays of one call.

    query_segments, key_segments: 0 is padding and is seen by none.
    prefix: 1 where a key belongs to the prefix.
    bias: of head h at the offset key - query = x - (l - 1), `[h, x]`; the kernels get it as `diagonal_tiles`.
    scalars: `(index of the first query in the row, seed of dropout)`.
    """

    query: Float[Array, "b l h k"]
    key: Float[Array, "b m n k"]
    value: Float[Array, "b m n k"]
    query_segments: Int[Array, "b l"]
    key_segments: Int[Array, "b m"]
    prefix: Int[Array, "b m"] | None
    bias: Float[Array, "h ..."] | None
    scalars: Int[Array, "2"]


jax.tree_util.register_dataclass(FlashInputs)


def key_blocks(start: Array, count: int, keys: int, settings: FlashSettings) -> tuple[Any, Any]:
    """First and last-plus-one block of keys that the queries at `[start, start + count)` may see."""
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
    """First and last-plus-one block of queries that may see the keys at `[start, start + block_k)`."""
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
    """Which keys of a tile each query sees; `query` and `key` are positions in the row."""
    mask = (query_segments == key_segments) & (key_segments > 0)
    if settings.causal:
        past = key <= query
        mask = mask & (past if prefix is None else past | (prefix > 0))
    if settings.window is not None:
        distance = query - key
        mask = mask & (distance < settings.window) & (distance > -settings.window)
    return mask


def keep_mask(seed: Array, row: Int[Array, "..."], key: Int[Array, "..."], rate: float) -> Bool[Array, "..."]:
    """Which attention weights survive dropout: a hash of the seed, the number of the row and the key's position.

    A function of positions alone, so that forward and backward passes, tiles of any size and the dense form agree. Two
    rounds of the finalizer of MurmurHash3 (Appleby 2011) mix the bits.
    """
    per_row = _mix(row.astype(jnp.uint32) + seed.astype(jnp.uint32))
    bits = _mix(per_row ^ (key.astype(jnp.uint32) * np.uint32(0x9E3779B9)))
    return (bits >> np.uint32(8)).astype(jnp.int32) >= round(rate * 2**24)


def _mix(x: Array) -> Array:
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))


def row_number(batch: Any, head: Any, heads: int, query: Int[Array, "..."]) -> Int[Array, "..."]:
    """The number of a row of attention weights over batch, heads and queries, for `keep_mask`."""
    return (batch * heads + head) * 2**20 + query


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def diagonal_tiles(bias: Float[Array, "h x"], block: int) -> Float[Array, "h d q k"]:
    """A bias by offset as square tiles of `block`: entry (i, j) of tile d is `bias[d * block + block - 1 + j - i]`.

    All tiles of a block diagonal of the matrix of scores are equal, so that the tiles take memory linear in the length.
    Kernels read them as they are. The gradient is `sum_diagonals`.
    """
    count = bias.shape[1] // block - 1
    inside = block - 1 + jnp.arange(block)[None, :] - jnp.arange(block)[:, None]
    return bias[:, jnp.arange(count)[:, None, None] * block + inside]


def sum_diagonals(tiles: Float[Array, "h d q k"]) -> Float[Array, "h x"]:
    """The transpose of `diagonal_tiles`: sums over the diagonals of all tiles.

    Rows are skewed by a reshape: row i of a tile moves to column `j + (block - 1 - i)`, so that a diagonal becomes a
    column.
    """
    heads, diagonals, block, _ = tiles.shape
    wide = jnp.pad(tiles[:, :, ::-1], [(0, 0), (0, 0), (0, 0), (0, block)])
    flat = wide.reshape(heads, diagonals, 2 * block * block)[:, :, : block * (2 * block - 1)]
    sums = flat.reshape(heads, diagonals, block, 2 * block - 1).sum(2)
    low = sums[:, :, :block].reshape(heads, diagonals * block)
    high = jnp.pad(sums[:, :, block:], [(0, 0), (0, 0), (0, 1)]).reshape(heads, diagonals * block)
    return jnp.pad(low, [(0, 0), (0, block)]) + jnp.pad(high, [(0, 0), (block, 0)])


diagonal_tiles.defvjp(
    lambda bias, block: (diagonal_tiles(bias, block), None),
    lambda block, _, gradient: (sum_diagonals(gradient),),
)


def flash_attention(inputs: FlashInputs, settings: FlashSettings) -> Float[Array, "b l h k"]:
    """Attention of one device: softmax(scale * q k^T + bias) v over the visible keys; 0 where a query sees none.

    Lengths and head_dim are padded here to what the kernels need. With a bias, tiles are square.
    """
    length, keys, width = inputs.query.shape[1], inputs.key.shape[1], inputs.query.shape[3]
    queries_padded = -(-length // settings.block_q) * settings.block_q
    keys_padded = -(-keys // settings.block_k) * settings.block_k
    width_padded = max(16, 1 << (width - 1).bit_length())

    def pad(x: Array, size: int) -> Array:
        channels = [(0, 0), (0, width_padded - width)] if x.ndim == 4 else []
        return jnp.pad(x, [(0, 0), (0, size - x.shape[1]), *channels])

    tiles = None
    if inputs.bias is not None:
        bias = jnp.pad(inputs.bias, [(0, 0), (queries_padded - length, 0)])
        bias = jnp.pad(bias, [(0, 0), (0, queries_padded + keys_padded - bias.shape[1])])
        # Scores are in units of log2(e), for exp2.
        tiles = diagonal_tiles(bias * LOG2_E, settings.block_q)
    padded = FlashInputs(
        query=pad(inputs.query, queries_padded),
        key=pad(inputs.key, keys_padded),
        value=pad(inputs.value, keys_padded),
        query_segments=pad(inputs.query_segments, queries_padded),
        key_segments=pad(inputs.key_segments, keys_padded),
        prefix=None if inputs.prefix is None else pad(inputs.prefix, keys_padded),
        bias=tiles,
        scalars=inputs.scalars,
    )
    return _attention(padded, settings)[:, :length, :, :width]


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _attention(inputs: FlashInputs, settings: FlashSettings) -> Array:
    return _forward(inputs, settings)[0]


def _forward(inputs: FlashInputs, settings: FlashSettings) -> tuple[Array, Any]:
    from t5x_lite.models.attention import flash_gpu

    out, log_sum = flash_gpu.forward(inputs, settings)
    return out, (inputs, out, log_sum)


def _backward(settings: FlashSettings, residuals: Any, out_gradient: Array) -> tuple[FlashInputs]:
    from t5x_lite.models.attention import flash_gpu

    inputs, out, log_sum = residuals
    delta = jnp.einsum("blhk,blhk->bhl", out.astype(jnp.float32), out_gradient.astype(jnp.float32))
    query, key, value = flash_gpu.backward(inputs, settings, out_gradient, log_sum, delta)
    groups = inputs.query.shape[2] // inputs.key.shape[2]
    if groups > 1:
        key, value = (x.reshape(*x.shape[:2], -1, groups, x.shape[3]).sum(3) for x in (key, value))
    bias = None
    if inputs.bias is not None:
        bias = jnp.zeros_like(inputs.bias)
        if settings.bias_gradient:
            # The kernel's scores are log2(e) times those of the definition, and so is the bias.
            bias = flash_gpu.bias_gradient(inputs, settings, out_gradient, log_sum, delta) / LOG2_E

    def none_for(x: Array | None) -> Any:
        return None if x is None else np.zeros(x.shape, jax.dtypes.float0)

    return (
        FlashInputs(
            query=query.astype(inputs.query.dtype),
            key=key.astype(inputs.key.dtype),
            value=value.astype(inputs.value.dtype),
            query_segments=none_for(inputs.query_segments),
            key_segments=none_for(inputs.key_segments),
            prefix=none_for(inputs.prefix),
            bias=bias,
            scalars=none_for(inputs.scalars),
        ),
    )


_attention.defvjp(_forward, _backward)
