"""Mixtures of the outputs of a stack's layers, which take the place of the last layer's output."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from t5x_lite.models.layers import weight


class LayerMean(nnx.Module):
    """The mean of the last layers' outputs (Devlin et al. 2019, §5.3).

    Args:
        layers: number of layers; one more than the stack has takes the input of its first layer too.
    """

    def __init__(self, layers: int) -> None:
        self.layers = layers

    def __call__(self, outputs: Float[Array, "layers b l d"]) -> Float[Array, "b l d"]:
        """Return the mean. `outputs` are the input of the first layer and the output of every layer."""
        return outputs[-self.layers :].mean(0)


class ScalarMix(nnx.Module):
    """γ·Σ softmax(w)_j·h_j over the last layers' outputs, with γ and w learnt (Peters et al. 2018, eq. 1).

    At first it is the mean: w is 0 and γ is 1.

    Args:
        layers: see `LayerMean`.
    """

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self.weights = weight(jnp.zeros(layers, jnp.float32), ("position",))
        self.gamma = weight(jnp.ones((), jnp.float32), ())

    def __call__(self, outputs: Float[Array, "layers b l d"]) -> Float[Array, "b l d"]:
        """Return the weighted sum; see `LayerMean`."""
        shares = self.gamma[...] * jax.nn.softmax(self.weights[...])
        return jnp.einsum("n,nbld->bld", shares.astype(outputs.dtype), outputs[-self.layers :])
