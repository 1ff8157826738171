"""Types of the arguments of an objective's loss: protocols of models, and arrays on the device.

Configurations are read without JAX, so nothing here imports it: at run time an `Array` is any object with a shape and a
dtype.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float, Int

if TYPE_CHECKING:
    from jaxtyping import Array, PRNGKeyArray

    from t5x_lite.models.losses import LossSettings, LossSums
else:
    Array = PRNGKeyArray = LossSettings = LossSums = Any

Batch: TypeAlias = Mapping[str, Array]
"""The features of an objective's examples, stacked along a new first axis."""
DropoutKey: TypeAlias = PRNGKeyArray | None
"""None in evaluation, where nothing is dropped."""

__all__ = [
    "Array",
    "Batch",
    "BidirectionalModel",
    "DetectionModel",
    "DropoutKey",
    "ElectraModel",
    "LanguageModel",
    "LossSettings",
    "LossSums",
    "MaskedLanguageModel",
    "PermutationModel",
    "SequenceModel",
    "TaskHead",
    "TaskModel",
]


@runtime_checkable
class SequenceModel(Protocol):
    """A model that maps tokens to the states of its last layer."""

    def __call__(self, *tokens: Int[Array, "b _"], key: DropoutKey, **features: Int[Array, "b _"] | None) -> Array:
        """Return the states `[batch, length, embed]`.

        Args:
            tokens: token ids `[batch, length]`; for an encoder_decoder those of the encoder and those of the decoder.
            key: for dropout.
            features: `positions`, `segment_ids`, and what else the family reads: `token_types` (encoder), `prefix`
                (decoder), `decoder_positions` and `decoder_segment_ids` (encoder_decoder).
        """


@runtime_checkable
class LanguageModel(SequenceModel, Protocol):
    """A model that predicts tokens: a decoder, an encoder_decoder, or an encoder with the output `tokens`."""

    def logits(self, hidden: Float[Array, "b l d"], /) -> Float[Array, "b l v"]:
        """Return a score for every token of the vocabulary, in float32."""


@runtime_checkable
class MaskedLanguageModel(LanguageModel, Protocol):
    """An encoder that predicts masked tokens.

    Attributes:
        sentence: scores the two classes of a sentence pair from the states; None without the output `sentence`.
        span: returns the states of masked tokens from the states on the left and right border of their span and their
            positions in it; None without the output `span`.
    """

    sentence: Callable[[Float[Array, "b l d"]], Float[Array, "b 2"]] | None
    span: Callable[[Float[Array, "b p d"], Float[Array, "b p d"], Int[Array, "b p"]], Float[Array, "b p d"]] | None

    def span_logits(self, states: Float[Array, "b p d"], /) -> Float[Array, "b p v"]:
        """Return a score for every token of the vocabulary from the result of `span`."""


@runtime_checkable
class PermutationModel(LanguageModel, Protocol):
    """An encoder with a query stream, which predicts tokens in an order of factorisation."""

    def predict_in_order(
        self,
        tokens: Int[Array, "b l"],
        predicted: Int[Array, "b p"],
        rank: Int[Array, "b l"],
        *,
        segment_ids: Int[Array, "b l"] | None = None,
        token_types: Int[Array, "b l"] | None = None,
        key: DropoutKey = None,
    ) -> Float[Array, "b p d"]:
        """Return a state for each predicted token, computed from tokens of a lower rank."""


@runtime_checkable
class BidirectionalModel(SequenceModel, Protocol):
    """An encoder whose states are those of two directions side by side."""

    def neighbour_logits(self, states: Float[Array, "b l d"], /) -> Float[Array, "b l v"]:
        """Return a score for every token of the vocabulary from the states of one direction, in float32."""


@runtime_checkable
class DetectionModel(SequenceModel, Protocol):
    """An encoder that detects replaced tokens: ELECTRA's discriminator."""

    def detection(
        self, hidden: Float[Array, "b l d"], segments: Int[Array, "b l"] | None = None, /
    ) -> Float[Array, "b l"]:
        """Return a score for each token, above 0 where it seems replaced."""


@runtime_checkable
class ElectraModel(Protocol):
    """A generator that fills masks and a discriminator that detects the tokens it replaced (Clark et al. 2020)."""

    generator: LanguageModel
    discriminator: DetectionModel

    def replace_tokens(
        self,
        tokens: Int[Array, "b l"],
        positions: Int[Array, "b p"],
        weights: Float[Array, "b p"],
        states: Float[Array, "b p d"],
        key: DropoutKey,
        /,
    ) -> Int[Array, "b l"]:
        """Return the tokens with those at `positions` drawn from the generator, whose states there are `states`."""


@runtime_checkable
class TaskHead(Protocol):
    """Scores of a task, of every token or of the pooled states of a text (`model.head`).

    Attributes:
        transitions: scores of a tag after another, `[classes, classes]`; None without a CRF.
    """

    transitions: Any

    def pooled(
        self,
        states: Float[Array, "b l d"],
        tokens: Int[Array, "b l"],
        segments: Int[Array, "b l"],
        key: DropoutKey = None,
        /,
    ) -> Array:
        """Return the pooled states `[batch, embed]`, or `[batch, length, embed]` if the head pools nothing."""

    def __call__(self, pooled: Float[Array, "... d"], key: DropoutKey, /) -> Float[Array, "... c"]:
        """Return the scores, in float32."""


@runtime_checkable
class TaskModel(SequenceModel, Protocol):
    """An encoder or a decoder with a head for a task."""

    head: TaskHead
