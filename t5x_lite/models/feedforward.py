"""The position-wise sublayer: an MLP, or a gated one."""

from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from t5x_lite.models.components import GLU, MLP
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layers import ACTIVATIONS, Experts, Groups, Linear, dropout


class Perceptron(nnx.Module):
    """down(activation(up(x))) (Vaswani et al. 2017, §3.3); with `experts`, as many side by side (see `Linear`)."""

    def __init__(
        self, config: ModelConfig, kind: MLP | GLU, width: int, *, experts: Experts | None = None, rngs: nnx.Rngs
    ) -> None:
        embed, mlp = ("embed", config.embed), ("mlp", width)
        self.activation, self.dropout = kind.activation, kind.dropout
        self.up = Linear(config, [embed], [mlp], experts=experts, rngs=rngs)
        self.down = Linear(config, [mlp], [embed], residual=True, experts=experts, rngs=rngs)

    def __call__(
        self, x: Float[Array, "... d"], key: PRNGKeyArray | None, groups: Groups | None = None
    ) -> Float[Array, "... d"]:
        inner = ACTIVATIONS[self.activation](self.up(x, groups))
        return self.down(dropout(inner, self.dropout, key), groups)


class Gated(nnx.Module):
    """down(activation(gate(x)) · up(x)) (Shazeer 2020); see `Perceptron`."""

    def __init__(
        self, config: ModelConfig, kind: MLP | GLU, width: int, *, experts: Experts | None = None, rngs: nnx.Rngs
    ) -> None:
        embed, mlp = ("embed", config.embed), ("mlp", width)
        self.activation, self.dropout = kind.activation, kind.dropout
        self.gate = Linear(config, [embed], [mlp], experts=experts, rngs=rngs)
        self.up = Linear(config, [embed], [mlp], experts=experts, rngs=rngs)
        self.down = Linear(config, [mlp], [embed], residual=True, experts=experts, rngs=rngs)

    def __call__(
        self, x: Float[Array, "... d"], key: PRNGKeyArray | None, groups: Groups | None = None
    ) -> Float[Array, "... d"]:
        inner = ACTIVATIONS[self.activation](self.gate(x, groups)) * self.up(x, groups)
        return self.down(dropout(inner, self.dropout, key), groups)


PERCEPTRONS: dict[type, type[Perceptron] | type[Gated]] = {MLP: Perceptron, GLU: Gated}
