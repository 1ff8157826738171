"""The position-wise sublayer: an MLP, or a gated one."""

from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from t5x_lite.models.config import GLU, MLP, ModelConfig
from t5x_lite.models.layers import Linear, activate, dropout


class Perceptron(nnx.Module):
    """down(activation(up(x))) (Vaswani et al. 2017, §3.3)."""

    def __init__(self, config: ModelConfig, feedforward: MLP | GLU, *, rngs: nnx.Rngs) -> None:
        embed, mlp = ("embed", config.embed), ("mlp", config.width_of_mlp)
        self.activation, self.dropout = feedforward.activation, feedforward.dropout
        self.up = Linear(config, [embed], [mlp], rngs=rngs)
        self.down = Linear(config, [mlp], [embed], residual=True, rngs=rngs)

    def __call__(self, x: Float[Array, "b l d"], key: PRNGKeyArray | None) -> Float[Array, "b l d"]:
        return self.down(dropout(activate(self.activation, self.up(x)), self.dropout, key))


class Gated(nnx.Module):
    """down(activation(gate(x)) · up(x)) (Shazeer 2020)."""

    def __init__(self, config: ModelConfig, feedforward: MLP | GLU, *, rngs: nnx.Rngs) -> None:
        embed, mlp = ("embed", config.embed), ("mlp", config.width_of_mlp)
        self.activation, self.dropout = feedforward.activation, feedforward.dropout
        self.gate = Linear(config, [embed], [mlp], rngs=rngs)
        self.up = Linear(config, [embed], [mlp], rngs=rngs)
        self.down = Linear(config, [mlp], [embed], residual=True, rngs=rngs)

    def __call__(self, x: Float[Array, "b l d"], key: PRNGKeyArray | None) -> Float[Array, "b l d"]:
        return self.down(dropout(activate(self.activation, self.gate(x)) * self.up(x), self.dropout, key))


FEEDFORWARDS: dict[type, type[Perceptron] | type[Gated]] = {MLP: Perceptron, GLU: Gated}
