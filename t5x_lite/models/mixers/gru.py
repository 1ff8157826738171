"""Gated recurrent units (Cho et al. 2014), with the reset gate behind the matrix, as cuDNN and PyTorch have it."""

from typing import ClassVar

from jaxtyping import Float

from t5x_lite.arrays import Array
from t5x_lite.models.mixers.mixer import MixerState
from t5x_lite.models.mixers.recurrent import Recurrent


class GRU(Recurrent):
    """Layers of gated recurrent units, as `torch.nn.GRU` has them; gates are reset, update and candidate."""

    gates: ClassVar[int] = 3
    adds_hidden_bias: ClassVar[bool] = True

    def step(
        self, from_input: Float[Array, "b g c"], from_output: Float[Array, "b g c"], state: MixerState
    ) -> MixerState:
        """Return h = (1 - z)·tanh(n_x + r·n_h) + z·h, r and z the sigmoids of the first two gates."""
        import jax
        import jax.numpy as jnp

        reset = jax.nn.sigmoid(from_input[:, 0] + from_output[:, 0])
        update = jax.nn.sigmoid(from_input[:, 1] + from_output[:, 1])
        candidate = jnp.tanh(from_input[:, 2] + reset * from_output[:, 2])
        return {"h": (1 - update) * candidate + update * state["h"]}
