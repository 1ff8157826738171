"""The interface of a position encoding: its settings, its parameters, and what it does to a model.

A position encoding is one file: a class of this kind and an entry in `POSITIONS`. It imports JAX inside its methods, so
that a config is checked before JAX starts.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from jaxtyping import Float, Int

from t5x_lite.arrays import Array
from t5x_lite.schema import Config

if TYPE_CHECKING:
    from flax import nnx

    from t5x_lite.models.attention.context import AttentionContext, ContentBias
    from t5x_lite.models.config import ModelConfig
    from t5x_lite.models.positions.module import ContentParameters, Positions

Place = Literal["embedding", "stack", "layer"]


class PositionEncoding(Config):
    """A position encoding. The defaults are those of a model without any.

    Methods that change arrays get `parameters`, the module that holds what `init_parameters` has returned.
    """

    @property
    def place(self) -> Place:
        """Return where the encoding is applied: to the embeddings, in every layer alike, or by each layer itself."""
        return "embedding"

    @property
    def adds_bias(self) -> bool:
        """The encoding adds a bias to the attention scores."""
        return False

    @property
    def reads_content(self) -> bool:
        """The encoding adds a bias that depends on queries and keys; then its place is the layer."""
        return False

    @property
    def bias_products(self) -> float:
        """Return how many products of the width of a head a content-dependent bias costs for each pair, for FLOPs."""
        return 0.0

    @property
    def score_scale(self) -> float:
        """Return a factor on the attention scores, beside that of `model.attention_scale`."""
        return 1.0

    @property
    def max_length(self) -> int | None:
        """Return the longest row that the encoding can serve; None: any."""
        return None

    @property
    def max_length_setting(self) -> str:
        """Return the setting that limits rows to `max_length`, for messages."""
        return "model.positions"

    def init_parameters(self, model: "ModelConfig", rngs: "nnx.Rngs") -> dict[str, "nnx.Module | nnx.Param"]:
        """Return the trained parameters of the encoding by name."""
        return {}

    def init_stack_parameters(self, model: "ModelConfig", rngs: "nnx.Rngs") -> dict[str, "nnx.Module | nnx.Param"]:
        """Return the trained parameters by name that all layers share beside those of each layer."""
        return {}

    def encode(
        self, parameters: "Positions", x: Float[Array, "b l d"], positions: Int[Array, "b l"]
    ) -> Float[Array, "b l d"]:
        """Return token embeddings with positions added."""
        return x

    def rotate(self, x: Float[Array, "b l h k"], positions: Int[Array, "b l"]) -> Float[Array, "b l h k"]:
        """Return queries or keys rotated by their positions."""
        return x

    def offset_bias(self, parameters: "Positions", offset: Int[Array, "..."], *, causal: bool) -> Float[Array, "h ..."]:
        """Return the bias of the scores of every head at offsets, key minus query."""
        raise TypeError(f"{type(self).__name__} adds no bias to the scores")

    def content_bias(self, parameters: "ContentParameters", context: "AttentionContext") -> "ContentBias":
        """Return the bias of the scores of one layer as a function of queries and keys.

        What does not depend on them is computed here, once for all parts of the row. The scale of the scores is a
        factor on their sum with the bias.

        Args:
            parameters: those of the layer and of the stack.
            context: the queries and keys of the whole layer.
        """
        raise TypeError(f"{type(self).__name__} adds no bias that depends on queries and keys")

    def model_problems(self, model: "ModelConfig") -> Iterator[str]:
        """Yield what a model has that this encoding does not work with."""
        yield from ()
