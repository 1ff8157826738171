"""The module that holds the parameters of a position encoding and applies it at one place of a model."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flax import nnx
from jaxtyping import Array, Float, Int

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.positions.encoding import Place


class Positions(nnx.Module):
    """A position encoding at one place of a model; elsewhere it does nothing and has no parameters."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, config: ModelConfig, place: Place, rngs: nnx.Rngs) -> None:
        self.encoding = config.positions
        self.heads = config.heads
        self.is_applied = self.encoding.place == place
        if self.is_applied:
            for name, parameter in self.encoding.init_parameters(config, rngs).items():
                setattr(self, name, parameter)

    def encode(self, x: Float[Array, "b l d"], positions: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        """Return token embeddings with positions added."""
        if not self.is_applied:
            return x
        return self.encoding.encode(self, x, positions)

    def rotate(self, x: Float[Array, "b l h k"], positions: Int[Array, "b l"] | None) -> Float[Array, "b l h k"]:
        """Return queries or keys rotated by their positions."""
        if not self.is_applied or positions is None:
            return x
        return self.encoding.rotate(x, positions)

    def offset_bias(self, *, causal: bool) -> Callable[[Int[Array, "..."]], Float[Array, "h ..."]] | None:
        """Return the bias of the scores as a function of offsets, key minus query; None: there is none."""
        if not self.is_applied or not self.encoding.adds_bias:
            return None

        def bias(offset: Int[Array, "..."]) -> Float[Array, "h ..."]:
            return self.encoding.offset_bias(self, offset, causal=causal)

        return bias
