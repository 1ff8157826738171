"""The key-value cache of decoding."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from t5x_lite.models.attention.context import AttentionContext, TokenPositions
from t5x_lite.models.attention.kinds import AttentionKind
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.mixers.mixer import CacheSizes


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values of one layer: of the tokens so far, or of an encoder's output.

    Latent attention has the rotated key and the latent in their places, of one head.
    """

    key: Float[Array, "b m n k"]
    value: Float[Array, "b m n j"]

    def select(self, places: Int[Array, "l"]) -> "KVCache":
        """Return the keys and values at some positions."""
        return KVCache(self.key[:, places], self.value[:, places])

    def swap_length_and_heads(self) -> "KVCache":
        """Swap the length and head axes.

        Caches are stored heads-first so that decoding does not transpose them for every token.
        """
        return KVCache(jnp.swapaxes(self.key, 1, 2), jnp.swapaxes(self.value, 1, 2))

    def append(self, new: "KVCache") -> "KVCache":
        """Return these keys and values with `new` after them."""
        key = jnp.concatenate([self.key, new.key.astype(self.key.dtype)], axis=1)
        value = jnp.concatenate([self.value, new.value.astype(self.value.dtype)], axis=1)
        return KVCache(key, value)


@dataclass(frozen=True)
class CacheSlice:
    """The cache of one layer inside the arrays of all layers.

    A write changes a few positions of arrays that the scan over layers carries. A scan that took each layer's cache and
    returned it would copy all of it for every token.

    Attributes:
        layers: arrays `[layers, b, n, m, k]`, stored heads-first.
        layer: number of the layer.
    """

    layers: KVCache
    layer: Int[Array, ""]

    @property
    def size(self) -> int:
        """Return the number of positions."""
        return self.layers.key.shape[3]

    def read(self) -> KVCache:
        """Return the keys and values of this layer."""

        def read_layer(array: Array) -> Array:
            return jax.lax.dynamic_index_in_dim(array, self.layer, keepdims=False)

        return jax.tree.map(read_layer, self.layers).swap_length_and_heads()

    def write_at(self, new: KVCache, start: Int[Array, ""] | int) -> "CacheSlice":
        """Return the cache with `new` written at `start` and the positions after it."""

        def write_layer(array: Array, update: Array) -> Array:
            update = update[None].astype(array.dtype)
            return jax.lax.dynamic_update_slice(array, update, (self.layer, 0, 0, start, 0))

        return CacheSlice(jax.tree.map(write_layer, self.layers, new.swap_length_and_heads()), self.layer)


def empty_cache(config: ModelConfig, sizes: CacheSizes, kind: AttentionKind, batch: int, length: int) -> KVCache:
    """Return a cache of one layer, stored heads-first.

    It has room for `length` tokens, or for a ring of as many as a query of this attention kind reaches back.
    """
    size = length
    if kind.max_lookback is not None:
        size = min(kind.max_lookback, length)
    shape = (batch, sizes.heads, size)
    return KVCache(jnp.zeros((*shape, sizes.key), config.compute), jnp.zeros((*shape, sizes.value), config.compute))


def update_cache(
    cache: CacheSlice, new: KVCache, context: AttentionContext
) -> tuple[KVCache, AttentionContext, CacheSlice]:
    """Write new keys and values into a cache.

    In a ring of size r the token at index i has place i mod r. One token overwrites the one that it no longer reaches.
    The first of several tokens still need what the last of them overwrite: they attend to the old ring, in order, and
    to themselves.

    Returns:
        The keys and values to attend to, their context, and the updated cache.
    """
    start = context.queries.index[0]
    length = context.queries.index.shape[0]
    size = cache.size
    if size == context.keys.index.shape[0]:
        cache = cache.write_at(new, start)
        return cache.read(), context, cache
    places = jnp.arange(size)
    if length == 1:
        cache = cache.write_at(new, start % size)
        keys = _positions_at(context.keys, start - (start - places) % size)
        return cache.read(), replace(context, keys=keys, bias=None), cache
    ring_in_order = cache.read().select((start + places) % size)
    source = ring_in_order.append(new)
    positions = _positions_at(context.keys, start - size + jnp.arange(size + length))
    positions = replace(positions, spacing=1)
    ring = source.select(length + (places - start - length) % size)
    context = replace(context, queries=positions, keys=positions, self_attention=True, bias=None)
    return source, context, cache.write_at(ring, 0)


def _positions_at(keys: TokenPositions, index: Int[Array, "m"]) -> TokenPositions:
    """Return the positions of keys at `index`; what is before the row is padding."""
    clipped = jnp.maximum(index, 0)
    segment_ids = jnp.where(index >= 0, keys.segment_ids[:, clipped], 0)
    prefix = keys.prefix
    if prefix is not None:
        prefix = prefix[:, clipped]
    return TokenPositions(index, segment_ids, prefix)
