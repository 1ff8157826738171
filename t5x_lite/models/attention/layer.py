"""Multi-head attention: projections, positions, and a kernel (Vaswani et al. 2017, §3.2)."""

from dataclasses import replace
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from t5x_lite.models.attention.cache import KVCache
from t5x_lite.models.attention.context import AttentionContext, AttentionSettings
from t5x_lite.models.attention.kernels import attend
from t5x_lite.models.attention.kinds import AttentionKind
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layers import Linear, Norm, Weight, weight
from t5x_lite.models.positions.encoding import PositionEncoding
from t5x_lite.models.positions.module import Positions


class KeyValueAdapter(Protocol):
    """The addition of prefix tuning to attention: it replaces the keys and values of some positions."""

    def __call__(
        self, key: Float[Array, "b m n k"], value: Float[Array, "b m n k"], positions: Int[Array, "b m"] | None
    ) -> tuple[Float[Array, "b m n k"], Float[Array, "b m n k"]]: ...


class Attention(nnx.Module):
    """Attention from `x` to a source; fewer `kv_heads` than `heads` is grouped-query attention (Ainslie et al. 2023).

    Attributes:
        layer_positions: how this layer rotates queries and keys; None: as the context says.
        prefix: what prefix tuning has added; None in a plain model.
    """

    def __init__(
        self,
        config: ModelConfig,
        kind: AttentionKind,
        *,
        positions: PositionEncoding | None = None,
        is_cross: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        embed = ("embed", config.embed)
        heads = ("heads", config.heads)
        kv_heads = ("kv_heads", config.kv_heads)
        head_dim = ("head_dim", config.head_dim)
        self.kind = kind
        self.layer_positions = positions
        self.settings = attention_settings(config, positions, config.head_dim)
        query_scale = _initial_query_scale(config)
        bias = config.query_key_value_bias
        key_bias = bias if config.key_bias is None else config.key_bias
        self.query = Linear(config, [embed], [heads, head_dim], bias=bias, scale=query_scale, rngs=rngs)
        self.key = Linear(config, [embed], [kv_heads, head_dim], bias=key_bias, rngs=rngs)
        self.value = Linear(config, [embed], [kv_heads, head_dim], bias=bias, rngs=rngs)
        self.out = Linear(config, [heads, head_dim], [embed], residual=True, rngs=rngs)
        if config.attention_output_gate:
            self.output_gate: Linear | None = Linear(config, [embed], [heads, head_dim], bias=bias, rngs=rngs)
        else:
            self.output_gate = None
        if config.query_key_norm == "head":
            self.query_norm: Norm | None = Norm(config.norm, head_dim)
            self.key_norm: Norm | None = Norm(config.norm, head_dim)
        elif config.query_key_norm == "width":
            self.query_norm = Norm(config.norm, heads, head_dim)
            self.key_norm = Norm(config.norm, kv_heads, head_dim)
        else:
            self.query_norm = None
            self.key_norm = None
        if config.attention_sinks and not is_cross:
            self.sinks: Weight | None = weight(jnp.zeros(config.heads, jnp.float32), ("heads",))
        else:
            self.sinks = None
        if not is_cross:
            self.positions: Positions | None = Positions(config, "layer", rngs)
        else:
            self.positions = None
        self.prefix: KeyValueAdapter | None = nnx.data(None)

    def keys_values(self, source: Float[Array, "b m d"], context: AttentionContext) -> KVCache:
        """Return the keys, normalised and rotated, and the values of a source."""
        key = self.key(source)
        value = self.value(source)
        if self.key_norm is not None:
            key = self.key_norm(key)
        key = rotate(key, self.layer_positions, context)
        if self.prefix is not None:
            key, value = self.prefix(key, value, context.positions)
        return KVCache(key, value)

    def queries(self, x: Float[Array, "b l d"], context: AttentionContext) -> Float[Array, "b l h k"]:
        """Return the queries of `x`, normalised and rotated."""
        query = self.query(x)
        if self.query_norm is not None:
            query = self.query_norm(query)
        return rotate(query, self.layer_positions, context)

    def __call__(
        self,
        x: Float[Array, "b l d"],
        source: KVCache,
        context: AttentionContext,
        dropout_key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b l d"]:
        """Attend from `x` to the keys and values of a source.

        Where the context has more queries than `x`, the first of them are padding: they belong to a ring of the cache.
        """
        query = self.queries(x, context)
        if self.positions is not None and context.offset_bias is None:
            context = replace(context, offset_bias=self.positions.offset_bias(causal=context.causal))
        if self.positions is not None:
            content_bias = self.positions.content_bias(context, self.query, self.key)
            context = replace(context, content_bias=content_bias)
        if self.sinks is not None:
            context = replace(context, sinks=self.sinks[...])
        padding = context.queries.index.shape[0] - x.shape[1]
        query = jnp.pad(query, [(0, 0), (padding, 0), (0, 0), (0, 0)])
        out = attend(query, source.key, source.value, self.kind, context, self.settings, dropout_key)
        return self.project_heads(out[:, padding:], x)

    def project_heads(self, heads: Float[Array, "b l h k"], x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Return the output of the layer: the heads', gated by the states that they attend from, as one vector."""
        if self.output_gate is not None:
            heads = heads * jax.nn.sigmoid(self.output_gate(x))
        return self.out(heads)


def rotate(
    x: Float[Array, "b l h k"], positions: PositionEncoding | None, context: AttentionContext
) -> Float[Array, "b l h k"]:
    """Rotate queries or keys as a layer's positions say, or where it has none as those of all layers."""
    if positions is None:
        return context.rotate(x, context.positions)
    if context.positions is None:
        return x
    return positions.rotate(x, context.positions)


def attention_settings(config: ModelConfig, positions: PositionEncoding | None, key_dim: int) -> AttentionSettings:
    """Return the settings of a layer's attention.

    Args:
        config: the model.
        positions: how this layer rotates queries and keys; None: as the model does.
        key_dim: width of queries and keys.
    """
    scale = config.score_scale
    factor = (positions or config.positions).score_scale
    if factor != 1:
        scale = (scale or key_dim**-0.5) * factor
    return AttentionSettings(scale, config.attention_dropout_rate, config.kernel, softcap=config.attention_softcap)


def _initial_query_scale(config: ModelConfig) -> float:
    """Return the factor on initial queries that makes the first scores as under 1/sqrt(head_dim); see `FanInInit`."""
    if config.attention_scale is None or not config.init.scales_queries:
        return 1.0
    return config.head_dim**-0.5 / config.attention_scale
