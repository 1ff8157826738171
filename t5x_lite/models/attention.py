"""Multi-head attention: projections, positions, cache, and a kernel of `kernels.py` (Vaswani et al. 2017, §3.2)."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from t5x_lite.models import kernels
from t5x_lite.models.config import LayerConfig, ModelConfig
from t5x_lite.models.kernels import Places
from t5x_lite.models.layers import Linear, Norm


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeysValues:
    """Keys and values of the tokens so far, of one layer."""

    key: Float[Array, "b m n k"]
    value: Float[Array, "b m n k"]


@dataclass(frozen=True)
class Context:
    """What all layers of one call share: the rotation of queries and keys, and where they stand in their rows."""

    rotate: Callable[[Float[Array, "b l h k"]], Float[Array, "b l h k"]]
    queries: Places
    keys: Places


class Attention(nnx.Module):
    """Self-attention; `kv_heads` below `heads` is grouped-query attention (Ainslie et al. 2023)."""

    def __init__(self, config: ModelConfig, layer: LayerConfig, *, rngs: nnx.Rngs) -> None:
        embed, head = ("embed", config.embed), ("head_dim", config.width_of_head)
        heads, kv_heads = ("heads", config.heads), ("kv_heads", config.key_value_heads)
        self.pattern = layer.attention
        self.dropout = config.dropout
        self.query = Linear(config, [embed], [heads, head], rngs=rngs)
        self.key = Linear(config, [embed], [kv_heads, head], rngs=rngs)
        self.value = Linear(config, [embed], [kv_heads, head], rngs=rngs)
        self.out = Linear(config, [heads, head], [embed], residual=True, rngs=rngs)
        normed = config.query_key_norm
        self.query_norm = Norm(config.norm, config.width_of_head, "head_dim") if normed else None
        self.key_norm = Norm(config.norm, config.width_of_head, "head_dim") if normed else None

    def __call__(
        self,
        x: Float[Array, "b l d"],
        context: Context,
        cache: KeysValues | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "b l d"], KeysValues | None]:
        """Attend from `x` to itself, or to the cache after the new keys and values are written into it."""
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k = context.rotate(q), context.rotate(k)
        if cache is not None:
            start = context.queries.index[0]
            k = jax.lax.dynamic_update_slice_in_dim(cache.key, k.astype(cache.key.dtype), start, axis=1)
            v = jax.lax.dynamic_update_slice_in_dim(cache.value, v.astype(cache.value.dtype), start, axis=1)
            cache = KeysValues(k, v)
        seen = kernels.mask(self.pattern, context.queries, context.keys, causal=True)
        mixed = kernels.dense(q, k, v, seen, dropout_rate=self.dropout, dropout_key=key)
        return self.out(mixed), cache


def empty_cache(config: ModelConfig, batch: int, length: int) -> KeysValues:
    """A cache of one layer for `length` tokens."""
    shape = (batch, length, config.key_value_heads, config.width_of_head)
    return KeysValues(jnp.zeros(shape, config.compute), jnp.zeros(shape, config.compute))
