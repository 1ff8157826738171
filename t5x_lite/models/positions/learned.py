"""Learned absolute positions (Radford et al. 2018)."""

from typing import TYPE_CHECKING

from jaxtyping import Float, Int

from t5x_lite.arrays import Array
from t5x_lite.models.positions.encoding import PositionEncoding
from t5x_lite.schema import Int as Integer
from t5x_lite.schema import setting

if TYPE_CHECKING:
    from flax import nnx

    from t5x_lite.models.config import ModelConfig
    from t5x_lite.models.positions.module import Positions


class Learned(PositionEncoding):
    """A trained vector for each absolute position, added to the token embedding."""

    length: Integer = setting(1024, "number of positions that have a vector", unit="tokens", ge=1)
    offset: Integer = setting(
        0, "unused rows before the first position", ge=0, source="RoBERTa and OPT: 2, in their code"
    )

    @property
    def max_length(self) -> int | None:
        """Return the number of positions."""
        return self.length

    @property
    def max_length_setting(self) -> str:
        return "model.positions.learned.length"

    def init_parameters(self, model: "ModelConfig", rngs: "nnx.Rngs") -> dict[str, "nnx.Module | nnx.Param"]:
        """Return the table of vectors."""
        from t5x_lite.models.layers import Embed

        return {"table": Embed(model, self.length + self.offset, model.summed_width, axis="position", rngs=rngs)}

    def encode(
        self, parameters: "Positions", x: Float[Array, "b l d"], positions: Int[Array, "b l"]
    ) -> Float[Array, "b l d"]:
        """Add the vector of each position."""
        return x + parameters.table(positions + self.offset)
