"""A block-diagonal linear map."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layers import weight


class BlockLinear(nnx.Module):
    """A square map of each block of the channels: weight `[blocks, width, width]`, bias `[blocks, width]`."""

    def __init__(self, model: ModelConfig, blocks: int, width: int, rngs: nnx.Rngs) -> None:
        names = ("heads", "head_dim", "head_dim")
        std = model.init.matrix_std(model, width)
        matrix = std * jax.random.normal(rngs.params(), (blocks, width, width), jnp.float32)
        self.weight = weight(matrix, names, 1, stacked=1)
        self.bias = weight(jnp.zeros((blocks, width), jnp.float32), names[:2])

    def __call__(self, x: Float[Array, "b l h k"]) -> Float[Array, "b l h k"]:
        y = jnp.einsum("blhk,hkj->blhj", x, self.weight[...].astype(x.dtype))
        return y.astype(jnp.float32) + self.bias[...]
