"""The module that holds the parameters of a position encoding and applies it at one place of a model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flax import nnx
from jaxtyping import Array, Float, Int

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.positions.encoding import Place

if TYPE_CHECKING:
    from t5x_lite.models.attention.context import AttentionContext, ContentBias
    from t5x_lite.models.layers import Linear


@dataclass(frozen=True)
class ContentParameters:
    """The parameters with which a bias is computed that depends on queries and keys.

    Attributes:
        layer: those of the encoding in the layer.
        stack: those of the encoding that all layers share.
        query, key: the projections of the layer.
    """

    layer: "Positions"
    stack: "Positions"
    query: "Linear"
    key: "Linear"


class Positions(nnx.Module):
    """A position encoding at one place of a model; elsewhere it does nothing.

    An encoding whose place is the layer may have parameters in the stack too, which all layers share.
    """

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, config: ModelConfig, place: Place, rngs: nnx.Rngs) -> None:
        self.encoding = config.positions
        self.heads = config.heads
        self.is_applied = self.encoding.place == place
        parameters = {}
        if self.is_applied:
            parameters = self.encoding.init_parameters(config, rngs)
        elif place == "stack":
            parameters = self.encoding.init_stack_parameters(config, rngs)
        for name, parameter in parameters.items():
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

    def content_bias(self, context: "AttentionContext", query: "Linear", key: "Linear") -> "ContentBias | None":
        """Return the bias of a layer's scores as a function of queries and keys; None: there is none."""
        if not self.is_applied or not self.encoding.reads_content:
            return None
        assert context.stack_positions is not None
        parameters = ContentParameters(self, context.stack_positions, query, key)
        return self.encoding.content_bias(parameters, context)
