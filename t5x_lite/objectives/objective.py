"""The interface of an objective: `example` in NumPy on the host, `loss` on the device.

Nothing here reads a file or imports JAX; `loss` imports JAX inside its body.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from t5x_lite.errors import UserError
from t5x_lite.models.config import ENCODERS, Family, ModelConfig
from t5x_lite.objectives.model_protocols import Batch, DropoutKey, LossSettings, LossSums
from t5x_lite.objectives.row_kinds import TOKENS, RowKind
from t5x_lite.schema import Config

Features: TypeAlias = Mapping[str, np.ndarray]
"""Inputs of a model and its loss, of fixed shapes; each objective documents its own. Padding is `segment_ids == 0`."""


@dataclass(frozen=True)
class Vocabulary:
    """The part of a tokenizer that objectives need.

    Attributes:
        size: number of ids.
        eos: id of the token that ends a text, if there is one.
        named: ids of the special tokens by name.
        sentinels: ids of T5's sentinels in their order of use.
        special: marks the ids of special tokens.
        begins_word: marks the ids of tokens that begin a word, such as those that begin with a space.
        frequency: each token's share of the training text, if the objective needs it (`Objective.needs_frequency`).
        ends_word: marks the ids of tokens that end a word, such as those that end with a line break.
        prefix_tokens: ids that the tokenizer puts before every text, such as Llama's <s>.
        pair_separator: ids that an encoder's tokenizer puts between two texts beside the token after the first, such as
            RoBERTa's second </s>.
        suffix_tokens: ids that it puts after every text that an encoder_decoder reads, such as T5's </s>.
    """

    size: int
    eos: int | None
    named: Mapping[str, int]
    sentinels: tuple[int, ...]
    special: Bool[np.ndarray, "size"]
    begins_word: Bool[np.ndarray, "size"]
    frequency: Float[np.ndarray, "size"] | None = None
    ends_word: Bool[np.ndarray, "size"] | None = None
    prefix_tokens: tuple[int, ...] = ()
    suffix_tokens: tuple[int, ...] = ()
    pair_separator: tuple[int, ...] = ()

    def require_eos(self, user: str) -> int:
        """Return the id of the end-of-text token.

        Args:
            user: what needs the token, for the error message.

        Raises:
            UserError: the tokenizer has none.
        """
        if self.eos is None:
            raise UserError(f"{user}: the tokenizer has no end-of-text token, such as </s>")
        return self.eos

    def require_token(self, user: str, *names: str) -> int:
        """Return the id of the first of these special tokens that the tokenizer has.

        Args:
            user: what needs the token, for the error message.
            names: names of the same token in different tokenizers.

        Raises:
            UserError: the tokenizer has none of them.
        """
        for name in names:
            if name in self.named:
                return self.named[name]
        raise UserError(
            f"{user}: the tokenizer has no {' or '.join(names)}; a tokenizer that is trained here gets it by "
            f"tokenizer.unigram.controls=['{names[0]}', …]"
        )


@dataclass(frozen=True)
class ExampleContext:
    """The settings of a run that its examples depend on.

    Attributes:
        seq_len: `train.seq_len`, in tokens.
        vocabulary: the tokenizer's.
        family: of the model.
        num_virtual_tokens: number of virtual tokens, with the ids -1, -2, …, before each input of a task.
        start_token: the token that an encoder_decoder's decoder begins with.
    """

    seq_len: int
    vocabulary: Vocabulary
    family: Family = "decoder"
    num_virtual_tokens: int = 0
    start_token: int = 0

    @property
    def is_encoder_only(self) -> bool:
        """True if the model has no decoder."""
        return self.family in ENCODERS


@dataclass(frozen=True)
class TokenRow:
    """A row of the corpus, from which an objective makes an example.

    Attributes:
        tokens: token ids, 0 in the padding.
        segments: number of the document of each token, from 1; 0 in the padding.
        parts: number of each token's sentence (or field) in its document, from 0, if the corpus marks them.
        second_sentence: a row of another document, for objectives on sentences.
    """

    tokens: Int[np.ndarray, "l"]
    segments: Int[np.ndarray, "l"]
    parts: Int[np.ndarray, "_"] = field(default_factory=lambda: np.zeros(0, np.int32))
    second_sentence: "TokenRow | None" = None


@dataclass(frozen=True)
class ExampleLengths:
    """Numbers of tokens that the parts of a model process in one example, for counting FLOPs.

    Attributes:
        tokens: processed by the encoder, or by the decoder of a decoder-only model.
        predicted: processed by the output matrix.
        targets: processed by the decoder of an encoder_decoder.
        texts: number of texts (choices, sides of a pair) in the example; each has the lengths above.
        query_stream: tokens of a second stream that attends to the first.
    """

    tokens: int
    predicted: int
    targets: int = 0
    texts: int = 1
    query_stream: int = 0


class Objective(Config):
    """A training objective. Its fields are its settings; an objective is one file.

    Class attributes:
        name: key in `OBJECTIVES` and in a config.
        families: families of models that it trains.
        predicts_tokens: its loss is a cross-entropy over the vocabulary, in nats per predicted token.
        every_token: its loss is that of every token of the text.
        one_text: a row of the token stream is one text, also where it spans several documents.
        fills_spans: it teaches a model to predict the tokens that a sentinel stands for.
        compares_rows: the loss of a row depends on the other rows of the batch.
        reads_two_streams: the model computes a second stream of states (`query_stream`), which only devices that hold
            whole rows and all layers can.
        loss_kind: name of its loss, if that depends on the features alone and not on the settings. Objectives of one
            kind that make the same features may share a batch (`objective` of a source in `data.mixture`).
        has_validation_loss: its loss can be computed on the validation split.
    """

    name: ClassVar[str]
    families: ClassVar[tuple[Family, ...]]
    predicts_tokens: ClassVar[bool] = True
    every_token: ClassVar[bool] = False
    one_text: ClassVar[bool] = False
    fills_spans: ClassVar[bool] = False
    compares_rows: ClassVar[bool] = False
    reads_two_streams: ClassVar[bool] = False
    loss_kind: ClassVar[str | None] = None
    has_validation_loss: ClassVar[bool] = True

    @property
    def rows(self) -> RowKind:
        """Kind of row that one example is made of, of `row_kinds`."""
        return TOKENS

    @property
    def needs_frequency(self) -> bool:
        """True if examples depend on the tokens' frequencies."""
        return False

    @property
    def needs_reference(self) -> bool:
        """True if the loss compares the model with the one that the run adapts (see `models.reference`)."""
        return False

    @property
    def updates_per_step(self) -> int:
        """Number of updates of the optimizer in a step."""
        return 1

    def loss_rows(self, rows: int) -> int:
        """Return the rows of the loss of one update, of so many rows of a batch."""
        return rows

    @property
    def sources(self) -> tuple[str, ...]:
        """Run directories of other models that training reads."""
        return ()

    def with_sources(self, sources: tuple[str, ...]) -> "Objective":
        """Return the objective with other names for its `sources`."""
        return self

    @property
    def static_epochs(self) -> int:
        """Number of epochs after which the random choices repeat; 0 for never."""
        return 0

    @property
    def term_weights(self) -> Mapping[str, str]:
        """For every term of `loss`, the feature that holds its weights.

        The train step divides the sum of each term by the sum of its weights over the whole batch, then adds the terms.
        """
        return {"loss": "loss_weights"}

    def check(self, model: ModelConfig) -> None:
        """Refuse a model that the objective cannot train. The family has been checked before.

        Raises:
            ValueError: with the reason.
        """

    def check_context(self, context: ExampleContext) -> None:
        """Refuse a vocabulary or a length for which no example can be made.

        Raises:
            UserError: a missing token, too few sentinels, or no room.
        """

    @abstractmethod
    def row_length(self, context: ExampleContext) -> int:
        """Return the largest number of raw tokens that one example holds.

        Example: span corruption with `seq_len` 512, a noise density of 0.15 and spans of 3 tokens reads 568 raw tokens,
        of which 512 remain as inputs, with sentinels and EOS (Raffel et al. 2020, §3.1.4).
        """

    def stride(self, context: ExampleContext) -> int:
        """Return the number of raw tokens from the start of one row of the stream to the start of the next."""
        return self.row_length(context)

    def packed_sizes(
        self, lengths: Int[np.ndarray, "documents parts"], context: ExampleContext
    ) -> Int[np.ndarray, "_ n"]:
        """Return the room that each document takes in a packed row, one number for each entry of `row_capacity`.

        Args:
            lengths: tokens in each part of each document, `[documents, parts]`.
            context: of the run.
        """
        return lengths.sum(1, keepdims=True)

    def row_capacity(self, context: ExampleContext) -> tuple[int, ...]:
        """Return the room of one packed row, of every kind that `packed_sizes` counts."""
        return (self.row_length(context),)

    def is_truncated(
        self, lengths: Int[np.ndarray, "documents parts"], context: ExampleContext
    ) -> Bool[np.ndarray, "documents"]:
        """Return which documents are longer than a row, so that no row holds all of their tokens.

        Args:
            lengths: tokens in each part of each document, `[documents, parts]`.
            context: of the run.
        """
        return lengths.sum(1) > self.row_length(context)

    def infilling_prefix(self, vocabulary: Vocabulary) -> tuple[int, ...]:
        """Return the ids before a text in which one token is to be filled in; none by default."""
        return ()

    def example_lengths(self, context: ExampleContext) -> ExampleLengths:
        """Return the numbers of tokens that a model processes in one example."""
        return ExampleLengths(context.seq_len, context.seq_len)

    @abstractmethod
    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        """Make one example of one row. An empty row gives weights of 0.

        Args:
            row: of the corpus.
            context: of the run.
            rng: depends on (seed, epoch, row) only.
        """

    @abstractmethod
    def loss(self, model: Any, batch: Batch, key: DropoutKey, settings: LossSettings) -> Mapping[str, LossSums]:
        """Return the sums of each term over the batch. The term `loss` is the one that is reported as the loss.

        Args:
            model: a module of one of `families`; objectives declare the protocol of `model_protocols` that they need.
            batch: the features of examples, stacked.
            key: for dropout; None in evaluation.
            settings: z-loss, label smoothing, and how logits are cut in chunks.
        """
