"""The position-wise feed-forward layer: an MLP or a gated linear unit."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.feedforward.config import GLU, MLP
from t5x_lite.models.layers import ACTIVATIONS, ExpertAxis, Linear, SortedRows, dropout


class FeedForward(nnx.Module):
    """down(activation(up(x))) (Vaswani et al. 2017, §3.3), or down(activation(gate(x)) * up(x)) (Shazeer 2020).

    With `experts`, as many of them side by side; see `Linear`.
    """

    def __init__(
        self,
        config: ModelConfig,
        settings: MLP | GLU,
        width: int,
        *,
        experts: ExpertAxis | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        embed = ("embed", config.embed)
        mlp = ("mlp", width)
        self.settings = settings
        bias = config.feedforward_bias
        if settings.is_gated:
            self.gate = Linear(config, [embed], [mlp], bias=bias, experts=experts, rngs=rngs)
        self.up = Linear(config, [embed], [mlp], bias=bias, experts=experts, rngs=rngs)
        self.down = Linear(config, [mlp], [embed], bias=bias, residual=True, experts=experts, rngs=rngs)
        self.is_gated = settings.is_gated

    def __call__(
        self, x: Float[Array, "... d"], dropout_key: PRNGKeyArray | None, sorted_rows: SortedRows | None = None
    ) -> Float[Array, "... d"]:
        if self.is_gated:
            inner = self._gated(self.gate(x, sorted_rows), self.up(x, sorted_rows))
        else:
            inner = ACTIVATIONS[self.settings.activation](self.up(x, sorted_rows))
        return self.down(dropout(inner, self.settings.dropout, dropout_key), sorted_rows)

    def _gated(self, gate: Float[Array, "... f"], up: Float[Array, "... f"]) -> Float[Array, "... f"]:
        assert isinstance(self.settings, GLU)
        limit = self.settings.limit
        if limit is not None:
            gate = jnp.minimum(gate, limit)
            up = jnp.clip(up, -limit, limit)
        if self.settings.offset:
            up = up + self.settings.offset
        return ACTIVATIONS[self.settings.activation](gate) * up
