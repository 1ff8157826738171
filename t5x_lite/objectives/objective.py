"""The interface of an objective: `example` in NumPy on the host, `loss` on the device. No file, no JAX import here."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.models.config import Family, ModelConfig
from t5x_lite.schema import Config

if TYPE_CHECKING:
    from t5x_lite.models.losses import Losses
else:
    Losses = Any
    """What a loss is made of: `models.losses.Losses`."""

Features: TypeAlias = Mapping[str, np.ndarray]
"""What an objective gives a model: fixed shapes, see the objective's docstring; padding is `segment_ids == 0`."""

RowKind = Literal["tokens", "sentences", "pairs"]


@dataclass(frozen=True)
class Vocabulary:
    """What an objective knows of a tokenizer.

    `size` counts ids; `eos` ends a text. `named` maps the special tokens that are there to their ids; `sentinels` are
    T5's in their order of use. `special` and `begins_word` say so of each id (`[size]` bool). `frequency` (`[size]`,
    sums to one) is each token's share of the training text, where an objective asked for it (`needs_frequency`).
    """

    size: int
    eos: int | None
    named: Mapping[str, int]
    sentinels: tuple[int, ...]
    special: np.ndarray
    begins_word: np.ndarray
    frequency: np.ndarray | None = None

    def end(self, objective: str) -> int:
        """The id of EOS.

        Raises:
            UserError: the tokenizer has none.
        """
        if self.eos is None:
            raise UserError(f"objective {objective}: the tokenizer has no end-of-text token, such as </s>")
        return self.eos

    def one_of(self, objective: str, *names: str) -> int:
        """The id of the first of these names that the tokenizer has.

        Raises:
            UserError: it has none of them.
        """
        for name in names:
            if name in self.named:
                return self.named[name]
        raise UserError(
            f"objective {objective}: the tokenizer has no {' or '.join(names)}; a tokenizer that is trained here gets "
            f"it by tokenizer.unigram.controls=['{names[0]}', …]"
        )


@dataclass(frozen=True)
class ExampleContext:
    """What an objective is told of the run: `train.seq_len`, the tokenizer's vocabulary, and the kind of model.

    `placeholders` soft tokens, of the ids -1, -2, …, come before each input of a task.
    """

    seq_len: int
    vocabulary: Vocabulary
    family: Family = "decoder"
    placeholders: int = 0


@dataclass(frozen=True)
class TokenRow:
    """A piece of the corpus. All arrays are int32 `[row_length]`.

    `tokens` are zero where padded; `segments` number the row's documents 1, 2, …, 0 where padded; `parts` number the
    sentences (or the fields) of each document from 0, where the corpus has them. `second_sentence` is a row of another
    document, where objectives are fed sentences.
    """

    tokens: np.ndarray
    segments: np.ndarray
    parts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    second_sentence: "TokenRow | None" = None


@dataclass(frozen=True)
class ExampleLengths:
    """Tokens that the parts of a model see in one example, for counting FLOPs.

    `tokens` pass the encoder, or the decoder of a decoder-only model; `targets` the decoder of an encoder_decoder;
    `predicted` the output matrix. An example of several `texts` (choices, a pair) has so many of each.
    """

    tokens: int
    predicted: int
    targets: int = 0
    texts: int = 1


class Objective(Config):
    """A training task. Its fields are its settings; its methods stand side by side in one file.

    `rows` says what it is fed: any tokens, whole sentences of one document with a `second_sentence` of another
    (`data.parts` tells sentences), or pairs of texts (`data.parts=fields`, in one of the `packings`). `every_token`: its loss is that
    of the whole text. `one_text`: a row of the stream is one text, whatever documents it touches.
    """

    name: ClassVar[str]
    families: ClassVar[tuple[Family, ...]]
    every_token: ClassVar[bool] = False
    one_text: ClassVar[bool] = False
    packings: ClassVar[tuple[str, ...]] = ("documents", "none")

    @property
    def rows(self) -> RowKind:
        """What one example is made from."""
        return "tokens"

    @property
    def needs_frequency(self) -> bool:
        """Whether it draws from the tokens' frequencies."""
        return False

    @property
    def static_epochs(self) -> int:
        """Epochs after which the same random choices come again; 0 for never."""
        return 0

    def check(self, model: ModelConfig) -> None:
        """Refuse a model that cannot serve, with a ValueError that says why. `families` is checked before."""

    def check_context(self, context: ExampleContext) -> None:
        """Refuse a vocabulary or a length that cannot serve.

        Raises:
            UserError: a token that is missing, sentinels that do not suffice.
        """

    @abstractmethod
    def row_length(self, context: ExampleContext) -> int:
        """Tokens of raw text that one example takes at most."""

    def stride(self, context: ExampleContext) -> int:
        """Tokens of raw text from the start of one row to the start of the next."""
        return self.row_length(context)

    def sizes(self, lengths: np.ndarray, context: ExampleContext) -> np.ndarray:
        """Room that packed documents take, `[documents, n]`, from the lengths of their parts `[documents, parts]`."""
        return lengths.sum(1, keepdims=True)

    def capacity(self, context: ExampleContext) -> tuple[int, ...]:
        """Room in one row, `[n]`."""
        return (self.row_length(context),)

    def lengths(self, context: ExampleContext) -> ExampleLengths:
        """What an example costs."""
        return ExampleLengths(context.seq_len, context.seq_len)

    @abstractmethod
    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        """One example from one row; `rng` depends on (seed, epoch, row) alone. An empty row gives weights of 0."""

    @abstractmethod
    def loss(self, model: Any, batch: Mapping[str, Any], key: Any, losses: Losses) -> Mapping[str, Any]:
        """Sums over the batch by term, as `models.losses.TokenLoss`.

        The term `loss` is the one that is reported as such; each term `x` has its weights in the feature `x_weights`.

        Args:
            model: a module of one of `families`.
            batch: the features of `example`, stacked.
            key: for dropout; None in evaluation.
            losses: how states become sums, with the run's z-loss and smoothing.
        """
