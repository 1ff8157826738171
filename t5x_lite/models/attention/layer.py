"""Multi-head attention: projections, positions, cache, and a kernel of `kernels.py` (Vaswani et al. 2017, §3.2)."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from t5x_lite.models import positions
from t5x_lite.models.attention import kernels
from t5x_lite.models.attention.context import AttentionContext, AttentionSettings, TokenPositions
from t5x_lite.models.attention.kinds import AttentionKind
from t5x_lite.models.components import FanInInit
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layers import Linear, Norm


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values of a source, of one layer: of the tokens so far, or of an encoder's states."""

    key: Float[Array, "b m n k"]
    value: Float[Array, "b m n k"]

    def __getitem__(self, places: Any) -> "KVCache":
        """Those at some places."""
        return KVCache(self.key[:, places], self.value[:, places])

    def turned(self) -> "KVCache":
        """With heads before places, or back: so caches lie, or all of one would be turned for every token."""
        return KVCache(jnp.swapaxes(self.key, 1, 2), jnp.swapaxes(self.value, 1, 2))

    def followed(self, new: "KVCache") -> "KVCache":
        """These, and `new` after them."""
        join = lambda old, own: jnp.concatenate([old, own.astype(old.dtype)], axis=1)  # noqa: E731
        return KVCache(join(self.key, new.key), join(self.value, new.value))


@dataclass(frozen=True)
class CacheSlice:
    """The cache of one layer, in the arrays of all: what is written changes a few places of an array that is carried.

    `layers` are arrays `[layers, b, n, m, k]`, `turned`. A scan that took each layer's cache and gave it back would
    copy all of it for every token.
    """

    layers: KVCache
    number: Int[Array, ""]

    def read(self) -> KVCache:
        """Keys and values of this layer."""
        own = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, self.number, keepdims=False), self.layers)
        return own.turned()

    def written(self, new: KVCache, start: Int[Array, ""] | int) -> "CacheSlice":
        """With `new` put at places `start` and after."""

        def write(old: Array, own: Array) -> Array:
            return jax.lax.dynamic_update_slice(old, own[None].astype(old.dtype), (self.number, 0, 0, start, 0))

        return CacheSlice(jax.tree.map(write, self.layers, new.turned()), self.number)


class Attention(nnx.Module):
    """Attention from `x` to a source; `kv_heads` below `heads` is grouped-query attention (Ainslie et al. 2023).

    `pattern` is an attention kind of `patterns.py`. A layer's own relative positions, if it has any, are for
    attention to itself (`cross` False).
    """

    def __init__(self, config: ModelConfig, pattern: AttentionKind, *, cross: bool = False, rngs: nnx.Rngs) -> None:
        embed, head = ("embed", config.embed), ("head_dim", config.width_of_head)
        heads, kv_heads = ("heads", config.heads), ("kv_heads", config.key_value_heads)
        self.pattern, scale = pattern, config.attention_scale
        self.settings = AttentionSettings(config.scale_of_scores, config.dropout, config.kernel)
        # What a smaller scale would do to the first scores, the first queries do (NormalInit has one deviation).
        shrink = config.width_of_head**-0.5 / scale if scale and isinstance(config.init, FanInInit) else 1.0
        bias = config.query_key_value_bias
        self.query = Linear(config, [embed], [heads, head], bias=bias, scale=shrink, rngs=rngs)
        self.key = Linear(config, [embed], [kv_heads, head], bias=bias, rngs=rngs)
        self.value = Linear(config, [embed], [kv_heads, head], bias=bias, rngs=rngs)
        self.out = Linear(config, [heads, head], [embed], residual=True, rngs=rngs)
        normed = {"none": None, "head": ([head], [head]), "width": ([heads, head], [kv_heads, head])}
        axes = normed[config.query_key_norm]
        self.query_norm = None if axes is None else Norm(config.norm, *axes[0])
        self.key_norm = None if axes is None else Norm(config.norm, *axes[1])
        self.positions = None if cross else positions.attended(config, rngs, layer=True)
        self.prefix: Any = nnx.data(None)

    def keys_values(self, source: Float[Array, "b m d"], view: AttentionContext) -> KVCache:
        """Keys, normed and rotated, and values of a source."""
        key, value = self.key(source), self.value(source)
        key = view.rotate(key if self.key_norm is None else self.key_norm(key), view.at)
        return KVCache(*((key, value) if self.prefix is None else self.prefix(key, value, view.at)))

    def __call__(
        self, x: Float[Array, "b l d"], source: KVCache, view: AttentionContext, key: PRNGKeyArray | None = None
    ) -> Float[Array, "b l d"]:
        """What `x` takes from the keys and values that it may see.

        Where the view has queries before those of `x`, they are padding: a row that looks at itself from a ring.
        """
        query = self.query(x)
        query = view.rotate(query if self.query_norm is None else self.query_norm(query), view.at)
        if self.positions is not None and view.bias is None:
            bias = self.positions.bias(causal=view.causal)
            view = replace(view, bias=bias, offset_bias=self.positions.offset_bias(causal=view.causal))
        before = view.queries.index.shape[0] - x.shape[1]
        query = jnp.pad(query, [(0, 0), (before, 0), (0, 0), (0, 0)])
        out = kernels.attend(query, source.key, source.value, self.pattern, view, self.settings, key)
        return self.out(out[:, before:])


def empty_cache(config: ModelConfig, pattern: AttentionKind, batch: int, length: int) -> KVCache:
    """A `turned` cache of one layer for `length` tokens, or of a ring of as many as queries reach back."""
    room = length if pattern.reach is None else min(pattern.reach, length)
    shape = (batch, config.key_value_heads, room, config.width_of_head)
    return KVCache(jnp.zeros(shape, config.compute), jnp.zeros(shape, config.compute))


def update_cache(
    cache: CacheSlice, new: KVCache, view: AttentionContext
) -> tuple[KVCache, AttentionContext, CacheSlice]:
    """What queries look at when `new` follows what is in `cache`, where that stands, and the longer cache.

    In a ring of size r the token at index i has place i mod r. One token overwrites the one that it no longer reaches.
    Of several, the first still need what the last overwrite: they look at the old ring, in order, and at themselves.
    """
    start, size = view.queries.index[0], cache.layers.key.shape[3]
    if size == view.keys.index.shape[0]:
        cache = cache.written(new, start)
        return cache.read(), view, cache
    length, places = view.queries.index.shape[0], jnp.arange(size)
    if length == 1:
        cache = cache.written(new, start % size)
        return cache.read(), replace(view, keys=_standing(view.keys, start - (start - places) % size)), cache
    source = cache.read()[(start + places) % size].followed(new)
    row = _standing(view.keys, start - size + jnp.arange(size + length))
    ring = source[length + (places - start - length) % size]
    return source, replace(view, queries=row, keys=row), cache.written(ring, 0)


def _standing(keys: TokenPositions, index: Int[Array, "m"]) -> TokenPositions:
    """The places at these indices; what is before the row is padding."""
    at = jnp.maximum(index, 0)
    prefix = None if keys.prefix is None else keys.prefix[:, at]
    return TokenPositions(index, jnp.where(index >= 0, keys.segment_ids[:, at], 0), prefix)
