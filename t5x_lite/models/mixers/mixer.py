"""The interface of a sequence mixer: the sublayer that moves information between the tokens of a row.

A mixer is one file: a subclass of `StateMixer` and an entry in `MIXERS`. It imports JAX inside its methods, so that a
config is checked before JAX starts.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from jaxtyping import Bool, Float

from t5x_lite.arrays import Array
from t5x_lite.models.positions import Learned, Sinusoidal
from t5x_lite.schema import Config, Int, setting

if TYPE_CHECKING:
    from flax import nnx
    from jaxtyping import PRNGKeyArray

    from t5x_lite.models.config import ModelConfig
    from t5x_lite.models.mixers.module import MixerModule

MixerState: TypeAlias = dict[str, Array]
"""Arrays `[b, …]` that a mixer carries from token to token."""


@dataclass(frozen=True)
class CacheSizes:
    """Numbers that the cache of one layer of attention holds for each token.

    Attributes:
        heads: heads whose keys and values are cached.
        key, value: width of each.
    """

    heads: int
    key: int
    value: int


class Mixer(Config):
    """A sequence mixer."""

    def model_problems(self, model: "ModelConfig") -> Iterator[str]:
        """Yield what a model has that this mixer does not work with."""
        yield from ()

    def depth(self) -> int:
        """Return the number of layers of cells on top of each other in the mixer."""
        return 1

    def place_of(self, parameter: str) -> int:
        """Return the number, from 0 at the bottom, of the layer of cells that has a parameter.

        Args:
            parameter: its name inside the mixer.
        """
        return 0

    def resolve(self, model: "ModelConfig") -> "Mixer":
        """Return the mixer with the sizes filled in for which null takes a size of the model."""
        return self


class SelfAttention(Mixer):
    """Multi-head attention of the layer's kind `attention` (Vaswani et al. 2017, §3.2).

    `models/attention` computes it; its state in decoding is a cache of keys and values, which grows with the row.
    """

    memory: Int = setting(
        0,
        "tokens before a row whose states it attends to too, with data.order: consecutive",
        unit="tokens",
        ge=0,
        source="Transformer-XL: Dai et al. 2019, §3.2",
    )

    def model_problems(self, model: "ModelConfig") -> Iterator[str]:
        """Yield what a memory does not go together with."""
        if not self.memory:
            return
        if model.family != "decoder" or model.prefix_lm:
            yield "mixer.attention.memory is for a decoder without prefix_lm"
        if isinstance(model.positions, Learned | Sinusoidal):
            yield (
                "mixer.attention.memory needs positions that depend on the distance, such as transformer_xl or rotary: "
                "those that are added to embeddings are the same in the memory and in the row"
            )

    def key_dim(self, model: "ModelConfig") -> int:
        """Return the width of a head's queries and keys."""
        return model.head_dim

    def value_dim(self, model: "ModelConfig") -> int:
        """Return the width of a head's values."""
        return model.head_dim

    def cache_sizes(self, model: "ModelConfig") -> CacheSizes:
        """Return what the cache of decoding holds for each token."""
        return CacheSizes(model.kv_heads, model.head_dim, model.head_dim)


class StateMixer(Mixer):
    """A recurrence over the tokens of a row, with a state of fixed size."""

    has_bias: ClassVar[bool] = False
    """It has biases even where `model.bias` is false."""

    @abstractmethod
    def init_parameters(self, model: "ModelConfig", rngs: "nnx.Rngs") -> "dict[str, nnx.Module | nnx.Param]":
        """Return the trained parameters of the mixer by name."""

    @abstractmethod
    def empty_state(self, model: "ModelConfig", batch: int) -> MixerState:
        """Return the state before the first token of a document: zeros."""

    @abstractmethod
    def mix(
        self,
        parameters: "MixerModule",
        x: Float[Array, "b l d"],
        continues: Bool[Array, "b l"],
        state: MixerState,
        key: "PRNGKeyArray | None",
    ) -> tuple[Float[Array, "b l d"], MixerState]:
        """Mix the tokens of each document.

        Args:
            parameters: the module that holds what `init_parameters` has returned.
            x: states of the tokens.
            continues: the token belongs to the document of the one before it (the first token: of the one before the
                row). Where it is False the mixer starts from an empty state.
            state: the state after the token before the row.
            key: turns dropout on.

        Returns:
            What is added to the residual stream, and the state after the last token.
        """

    def scan_flops(self, model: "ModelConfig") -> float:
        """Return the FLOPs per token, forward, of what is not a product with a weight matrix."""
        return 0.0
