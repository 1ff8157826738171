"""Multi-head latent attention (DeepSeek-V2: Liu et al. 2024, §2.1, equations 9 to 19).

Letters beside those of `layers.py`: c channels of the latent, r rotated channels, j channels of a value.
"""

from dataclasses import replace

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from t5x_lite.models.attention.cache import KVCache
from t5x_lite.models.attention.context import AttentionContext
from t5x_lite.models.attention.kernels import attend
from t5x_lite.models.attention.kinds import AttentionKind
from t5x_lite.models.attention.layer import attention_settings, rotate
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layers import Linear, Norm
from t5x_lite.models.mixers.latent_attention import LatentAttention
from t5x_lite.models.positions.encoding import PositionEncoding


class MultiHeadLatentAttention(nnx.Module):
    """Attention whose keys and values are computed from a latent and from one rotated key a token.

    What `keys_values` returns, and a cache holds, are these two: the rotated key in the place of the key, `[b, m, 1,
    r]`, and the latent in the place of the value, `[b, m, 1, c]`.

    Attributes:
        layer_positions: how this layer rotates queries and keys; None: as the context says.
    """

    def __init__(
        self,
        config: ModelConfig,
        mixer: LatentAttention,
        kind: AttentionKind,
        *,
        positions: PositionEncoding | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        embed = ("embed", config.embed)
        heads = ("heads", config.heads)
        kv_heads = ("kv_heads", config.heads)
        latent = ("latent", mixer.rank)
        self.kind = kind
        self.layer_positions = positions
        self.key_dim = mixer.key_dim(config)
        self.rotary = mixer.rotary
        self.settings = attention_settings(config, positions, self.key_dim)
        query_input = embed
        if mixer.query_rank is None:
            self.query_down: Linear | None = None
            self.query_down_norm: Norm | None = None
        else:
            query_input = ("latent", mixer.query_rank)
            self.query_down = Linear(config, [embed], [query_input], rngs=rngs)
            self.query_down_norm = Norm(config.norm, query_input)
        self.query = Linear(config, [query_input], [heads, ("head_dim", self.key_dim)], bias=False, rngs=rngs)
        self.down = Linear(config, [embed], [latent], rngs=rngs)
        self.down_norm = Norm(config.norm, latent)
        self.rotary_key = Linear(config, [embed], [("latent", mixer.rotary)], rngs=rngs)
        self.key = Linear(config, [latent], [kv_heads, ("head_dim", config.head_dim)], bias=False, rngs=rngs)
        value_dim = ("head_dim", mixer.value_dim(config))
        self.value = Linear(config, [latent], [kv_heads, value_dim], bias=False, rngs=rngs)
        self.out = Linear(config, [heads, value_dim], [embed], residual=True, rngs=rngs)

    def keys_values(self, source: Float[Array, "b m d"], context: AttentionContext) -> KVCache:
        """Return the shared key, rotated, and the normalised latent of a source."""
        key = self.rotary_key(source)[:, :, None]
        latent = self.down_norm(self.down(source))[:, :, None]
        return KVCache(rotate(key, self.layer_positions, context), latent)

    def __call__(
        self,
        x: Float[Array, "b l d"],
        source: KVCache,
        context: AttentionContext,
        dropout_key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b l d"]:
        """Attend from `x` to the latents of a source; see `Attention.__call__` for the padding."""
        query = self._query(x, context)
        padding = context.queries.index.shape[0] - x.shape[1]
        query = jnp.pad(query, [(0, 0), (padding, 0), (0, 0), (0, 0)])
        is_step = query.shape[1] == 1 and not context.self_attention
        if is_step and self.key.adapter is None and self.value.adapter is None:
            out = self._attend_to_latents(query, source, context, dropout_key)
        else:
            key = self.key(source.value[:, :, 0])
            rotated_key = jnp.broadcast_to(source.key, (*key.shape[:-1], self.rotary))
            key = jnp.concatenate([key, rotated_key.astype(key.dtype)], axis=-1)
            value = self.value(source.value[:, :, 0])
            out = attend(query, key, value, self.kind, context, self.settings, dropout_key)
        return self.out(out[:, padding:])

    def _query(self, x: Float[Array, "b l d"], context: AttentionContext) -> Float[Array, "b l h k"]:
        """Return queries, the last channels of which are rotated."""
        if self.query_down is not None and self.query_down_norm is not None:
            x = self.query_down_norm(self.query_down(x))
        plain, rotated = jnp.split(self.query(x), [self.key_dim - self.rotary], axis=-1)
        return jnp.concatenate([plain, rotate(rotated, self.layer_positions, context)], axis=-1)

    def _attend_to_latents(
        self,
        query: Float[Array, "b l h k"],
        source: KVCache,
        context: AttentionContext,
        dropout_key: PRNGKeyArray | None,
    ) -> Float[Array, "b l h j"]:
        """Attend to the latents themselves, as to keys and values of one head.

        The matrices of keys and values are multiplied with the query and with the output instead (§2.1.2): for the one
        query of a decoding step, no keys and values of earlier tokens are computed.
        """
        dtype = query.dtype
        plain, rotated = jnp.split(query, [self.key_dim - self.rotary], axis=-1)
        query_of_latent = jnp.einsum("blhk,chk->blhc", plain, self.key.weight[...].astype(dtype))
        query = jnp.concatenate([query_of_latent, rotated], axis=-1)
        key = jnp.concatenate([source.value, source.key], axis=-1)
        settings = replace(self.settings, scale=self.settings.scale or self.key_dim**-0.5)
        out = attend(query, key, source.value, self.kind, context, settings, dropout_key)
        return jnp.einsum("blhc,chj->blhj", out, self.value.weight[...].astype(dtype))
