"""The interface of an objective that learns from records of a task, texts with labels, instead of running text."""

import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from jaxtyping import Float

from t5x_lite.errors import UserError
from t5x_lite.models.config import Family, ModelConfig
from t5x_lite.models.head_config import HeadConfig
from t5x_lite.objectives.model_protocols import Array, Batch, DropoutKey, LossSettings, LossSums, TaskModel
from t5x_lite.objectives.objective import ExampleContext, ExampleLengths, Features, Objective, TokenRow
from t5x_lite.schema import setting

Record: TypeAlias = Mapping[str, Any]
"""One record of a task: values by role (`text`, `label`, …)."""
Answer: TypeAlias = int | float | str | list[str]
"""A prediction, or the reference that a metric compares it with; its type depends on the objective."""
Pool = Literal["auto", "first", "last", "mean", "max", "concat"]
SHORTEST_ROW = 5
"""Length of a row of two texts of one token each with BERT's special tokens."""


def _no_messages(prompt: Sequence[Any], answer: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    raise ValueError("messages need a tokenizer with a chat template")


@dataclass(frozen=True)
class TaskTokenizer:
    """The functions of a tokenizer that examples need.

    Attributes:
        encode: returns the int32 ids of a text.
        encode_with_offsets: returns the ids, and for each id the start and the end (exclusive) of the characters that
            it stands for, int32 `[n, 2]`.
        decode: returns the text of ids.
        encode_answer: returns the ids of the messages of a prompt, with the beginning of the assistant's turn, and
            those of the messages that answer it.
    """

    encode: Callable[[str], np.ndarray]
    encode_with_offsets: Callable[[str], tuple[np.ndarray, np.ndarray]]
    decode: Callable[[Sequence[int]], str]
    encode_answer: Callable[[Sequence[Any], Sequence[Any]], tuple[np.ndarray, np.ndarray]] = _no_messages


class Supervised(Objective):
    """An objective on records, which scores them: by a head of the model, unless `uses_head` is false.

    A record becomes one example, or several: windows of a long text.

    Class attributes:
        roles: columns that each record must have.
        optional_roles: columns whose value may be null.
        flaw: the defect that makes a record unlearnable (see `learnable`), for a message; empty if there is none.
        uses_head: it learns the scores of a head, and not the model's own probabilities of tokens.
        checks_records: every record of a TFDS builder, too, is checked by `check_record` before a run begins.
    """

    families: ClassVar[tuple[Family, ...]] = ("encoder", "decoder")
    predicts_tokens: ClassVar[bool] = False
    roles: ClassVar[tuple[str, ...]]
    optional_roles: ClassVar[tuple[str, ...]] = ()
    flaw: ClassVar[str] = ""
    uses_head: ClassVar[bool] = True
    checks_records: ClassVar[bool] = False

    @property
    def texts(self) -> int:
        """Number of texts in an example, each of which passes the model by itself."""
        return 1

    def head(self, model: ModelConfig) -> HeadConfig | None:
        """Return the head that the model needs; None if the model's own probabilities of tokens are learnt."""
        return None

    def check(self, model: ModelConfig) -> None:
        """Refuse a model that predicts no tokens, if their probabilities are learnt."""
        if not self.uses_head and not model.predicts_tokens:
            raise ValueError(f"objective {self.name} needs a model that predicts tokens (model.outputs)")

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels by their indices; empty if labels are numbers, or there are none."""
        return ()

    def check_record(self, record: Record) -> None:
        """Refuse a record that nothing can be learnt from; by default, one without a right answer.

        Raises:
            ValueError: with the reason; the caller names the record.
        """
        self.reference(record)

    def check_columns(self, names: Collection[str], read: Collection[object]) -> None:
        """Refuse a record with a column that must not be left out, by its columns and those that the task reads.

        Raises:
            ValueError: with the reason; the caller names the record.
        """

    @abstractmethod
    def examples(self, record: Record, tokenizer: TaskTokenizer, context: ExampleContext) -> list[Features]:
        """Make the examples of a record. A record that is not learnable gives examples of weight 0.

        Raises:
            ValueError: a label that is not declared; the caller names the record.
        """

    def scores(self, model: TaskModel, batch: Batch, key: DropoutKey = None) -> dict[str, Array]:
        """Return the scores that the loss and the prediction depend on, float32, one row an example.

        By default they are the head's scores of pooled states. Scores of several texts of an example are side by side.
        """
        scores = model.head(pooled_states(model, batch, key), key)
        if self.texts > 1:
            scores = scores.reshape(-1, self.texts)
        return {"scores": scores}

    def loss(self, model: TaskModel, batch: Batch, key: DropoutKey, settings: LossSettings) -> Mapping[str, LossSums]:
        """Return the cross-entropy over the scores."""
        from t5x_lite.models import losses

        scores = self.scores(model, batch, key)["scores"]
        return {"loss": losses.class_cross_entropy(scores, batch["targets"], batch["loss_weights"])}

    def prediction(self, record: Record, examples: Sequence[Features], scores: Sequence[Features]) -> Answer:
        """Return the answer for a record, in the form of `reference`; by default the index of the highest score.

        Args:
            record: of the task.
            examples: those of the record.
            scores: the scores of each example.
        """
        return int(scores[0]["scores"].argmax())

    def margin(self, scores: Sequence[Features]) -> float | None:
        """Return by how much the first of two answers scores above the second; None if there are no two answers.

        Args:
            scores: the scores of each example of a record.
        """
        return None

    @abstractmethod
    def reference(self, record: Record) -> Answer:
        """Return the right answer, in the form that metrics expect."""

    def from_text(self, text: str, record: Record) -> Answer:
        """Return the answer that a text-to-text model has written, in the form of `prediction`."""
        return text.strip()

    def to_text(self, record: Record) -> str:
        """Return the right answer as a text-to-text model should write it."""
        raise ValueError(f"objective {self.name} has no text form; set task_form: head")

    def learnable(self, record: Record) -> bool:
        """Return False if the record has the `flaw`."""
        return True

    def check_context(self, context: ExampleContext) -> None:
        """Refuse a row without room for texts."""
        if context.seq_len - context.num_virtual_tokens < SHORTEST_ROW:
            raise UserError(
                f"train.seq_len {context.seq_len}: leaves no room beside {context.num_virtual_tokens} virtual tokens"
            )

    def row_length(self, context: ExampleContext) -> int:
        return context.seq_len

    def example_lengths(self, context: ExampleContext) -> ExampleLengths:
        return ExampleLengths(context.seq_len, 1, texts=self.texts)

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        """Refuse running text, which has no labels."""
        raise UserError(f"objective {self.name}: learns from the records of a task; name one in `tasks`")


class Pooled(Supervised):
    """An objective that scores each text by its pooled states."""

    pool: Pool = setting(
        "auto", "pool the first token's states (default in an encoder), the last's (default in a decoder), or all"
    )

    @property
    def outputs(self) -> int:
        """Number of scores of a text."""
        return 1

    def head(self, model: ModelConfig) -> HeadConfig:
        if self.pool != "auto":
            return HeadConfig(outputs=self.outputs, pool=self.pool)
        if model.family == "encoder" and not model.query_stream:  # XLNet's [CLS] comes last
            return HeadConfig(outputs=self.outputs, pool="first")
        return HeadConfig(outputs=self.outputs, pool="last")


def label_index(label: object, labels: Sequence[str]) -> int:
    """Return the index of a label, which is its name, in any case of letters, or its index as a number or a text.

    Raises:
        ValueError: the label is not declared.
    """
    text = str(label)
    if text in labels:
        return labels.index(text)
    folded = [name.casefold() for name in labels]
    if folded.count(text.casefold()) == 1:
        return folded.index(text.casefold())
    if text.isdigit() and int(text) < len(labels):
        return int(text)
    raise ValueError(f"label {label!r} is not one of {', '.join(labels)}, nor a number below {len(labels)}")


def finite_number(value: object) -> float:
    """Return a label that is a number, or a text that says one.

    Raises:
        ValueError: it is no finite number.
    """
    number = float(str(value))
    if not math.isfinite(number):
        raise ValueError(f"label {value!r} is not a finite number")
    return number


def text_states(model: TaskModel, batch: Batch, key: DropoutKey) -> Float[Array, "texts l d"]:
    """Return the model's states of every text; several texts of an example become rows of their own."""
    rows = {}
    for name in ("positions", "segment_ids", "token_types"):
        if name in batch:
            rows[name] = one_text_a_row(batch[name])
    return model(one_text_a_row(batch["tokens"]), **rows, key=key)


def pooled_states(model: TaskModel, batch: Batch, key: DropoutKey) -> Float[Array, "texts d"]:
    """Return the pooled states of every text; see `text_states`."""
    states = text_states(model, batch, key)
    return model.head.pooled(states, one_text_a_row(batch["tokens"]), one_text_a_row(batch["segment_ids"]), key)


def one_text_a_row(feature: Array) -> Array:
    """Return a feature of examples of several texts with a row for each text."""
    return feature.reshape(-1, feature.shape[-1])
