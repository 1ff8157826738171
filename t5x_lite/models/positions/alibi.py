"""ALiBi: linear biases of the attention scores (Press et al. 2022)."""

from typing import TYPE_CHECKING

from jaxtyping import Float, Int

from t5x_lite.arrays import Array
from t5x_lite.models.positions.encoding import Place, PositionEncoding

if TYPE_CHECKING:
    from t5x_lite.models.positions.module import Positions


class ALiBi(PositionEncoding):
    """A fixed penalty of slope * distance; the slopes of n heads are 2^(-8/n), 2^(-16/n), …, 2^-8 (§3)."""

    @property
    def place(self) -> Place:
        """Return `stack`: the bias is the same in every layer."""
        return "stack"

    @property
    def adds_bias(self) -> bool:
        """The penalty is a bias of the scores."""
        return True

    def offset_bias(self, parameters: "Positions", offset: Int[Array, "..."], *, causal: bool) -> Float[Array, "h ..."]:
        """Return the penalty of each head at each offset."""
        import jax.numpy as jnp

        heads = parameters.heads
        slopes = 2.0 ** (-8.0 * jnp.arange(1, heads + 1) / heads)
        return -slopes.reshape(-1, *[1] * offset.ndim) * jnp.abs(offset)
