"""ALiBi: linear biases of the attention scores (Press et al. 2022)."""

from typing import TYPE_CHECKING, Literal

from jaxtyping import Float, Int

from t5x_lite.arrays import Array
from t5x_lite.models.positions.encoding import Place, PositionEncoding
from t5x_lite.schema import setting

if TYPE_CHECKING:
    from t5x_lite.models.positions.module import Positions


class ALiBi(PositionEncoding):
    """A fixed penalty of slope * distance; the slopes of n heads are 2^(-8/n), 2^(-16/n), …, 2^-8 (§3).

    For a number of heads that is no power of two, the authors' code takes the slopes of the next smaller power n, and
    then every other slope of 2n heads.
    """

    slopes: Literal["series", "powers_of_two"] = setting(
        "series", "one series for any number of heads, or as in the authors' code; alike for a power of two"
    )

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

        slopes = jnp.asarray(self.slopes_of(parameters.heads), jnp.float32)
        return -slopes.reshape(-1, *[1] * offset.ndim) * jnp.abs(offset)

    def slopes_of(self, heads: int) -> list[float]:
        """Return the slope of each head."""
        if self.slopes == "series":
            return _series(heads)
        power = 2 ** (heads.bit_length() - 1)
        return (_series(power) + _series(2 * power)[::2])[:heads]


def _series(heads: int) -> list[float]:
    return [2.0 ** (-8.0 * head / heads) for head in range(1, heads + 1)]
