"""The interface of an objective that learns from records of a task (texts with labels) instead of running text."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.models.config import Family, HeadConfig, ModelConfig
from t5x_lite.objectives.features import padded, placed, stacked
from t5x_lite.objectives.masked import CLS, SEP
from t5x_lite.objectives.objective import ExampleContext, ExampleLengths, Features, Losses, Objective, TokenRow
from t5x_lite.schema import setting

Record = Mapping[str, Any]
"""One record of a task: values by role (`text`, `label`, …)."""
Pool = Literal["auto", "first", "last", "mean", "max"]
SMALLEST = 5
"""Tokens of a row: two texts of one token, and what frames them."""


@dataclass(frozen=True)
class Coder:
    """Text to ids, and to ids with the characters `[n, 2]` that each stands for; ids to text."""

    encode: Callable[[str], np.ndarray]
    encode_placed: Callable[[str], tuple[np.ndarray, np.ndarray]]
    decode: Callable[[Sequence[int]], str]


class Supervised(Objective):
    """An objective on records. `roles` are what each must hold; a head of its own makes the scores.

    A record becomes one example or several (windows of a long text). `flaw` says what a record has that cannot be
    learnt from, where there may be such.
    """

    families: ClassVar[tuple[Family, ...]] = ("encoder", "decoder")
    roles: ClassVar[tuple[str, ...]]
    flaw: ClassVar[str] = ""

    @property
    def texts(self) -> int:
        """Texts of an example, each of which passes the model by itself."""
        return 1

    @abstractmethod
    def head(self, model: ModelConfig) -> HeadConfig:
        """What the model needs to make the scores."""

    @abstractmethod
    def examples(self, record: Record, coder: Coder, context: ExampleContext) -> list[Features]:
        """The examples of a record, without weight if it cannot be learnt from.

        Raises:
            ValueError: a label that is not declared; the caller names the record.
        """

    def scores(self, model: Any, batch: Mapping[str, Any], key: Any = None) -> dict[str, Any]:
        """What a loss or a prediction is made from, float32 with a row an example; here those of texts' states.

        The scores of several texts stand side by side.
        """
        scores = model.head(pooled(model, batch, key), key)
        return {"scores": scores if self.texts == 1 else scores.reshape(-1, self.texts)}

    def loss(self, model: Any, batch: Mapping[str, Any], key: Any, losses: Losses) -> Mapping[str, Any]:
        """Here cross-entropy over the scores."""
        scores = self.scores(model, batch, key)["scores"]
        return {"loss": losses.classes(scores, batch["targets"], batch["loss_weights"])}

    def prediction(self, record: Record, examples: Sequence[Features], scores: Sequence[Features]) -> Any:
        """The answer for a record from the scores of its examples, in the form of `reference`; here the likeliest."""
        return int(scores[0]["scores"].argmax())

    @abstractmethod
    def reference(self, record: Record) -> Any:
        """The right answer as metrics want it."""

    def from_text(self, text: str, record: Record) -> Any:
        """The answer that a text-to-text model has written, in the form of `prediction`."""
        return text.strip()

    def to_text(self, record: Record) -> str:
        """The right answer for a text-to-text model to write."""
        raise ValueError(f"objective {self.name} has no text form; set task_form: head")

    def learnable(self, record: Record) -> bool:
        """Whether a record has not the `flaw`."""
        return True

    def check_context(self, context: ExampleContext) -> None:
        """Refuse a row without room for texts."""
        if context.seq_len - context.placeholders < SMALLEST:
            raise UserError(
                f"train.seq_len {context.seq_len}: leaves no room beside {context.placeholders} soft tokens"
            )

    def row_length(self, context: ExampleContext) -> int:
        """Tokens of an example."""
        return context.seq_len

    def lengths(self, context: ExampleContext) -> ExampleLengths:
        """What an example costs."""
        return ExampleLengths(context.seq_len, 1, texts=self.texts)

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        """Running text has no labels."""
        raise UserError(f"objective {self.name}: learns from the records of a task; name one in `tasks`")


class Pooled(Supervised):
    """An objective that scores texts, each by its states as one."""

    pool: Pool = setting("auto", "whose states: the first token's (an encoder), the last's (a decoder), or all tokens'")

    @property
    def outputs(self) -> int:
        """Scores of a text."""
        return 1

    def head(self, model: ModelConfig) -> HeadConfig:
        """See `Supervised.head`; `auto` is an encoder's first token, a decoder's last."""
        automatic: Any = "first" if model.family == "encoder" else "last"
        return HeadConfig(outputs=self.outputs, pool=automatic if self.pool == "auto" else self.pool)


def label_index(label: Any, labels: Sequence[str]) -> int:
    """The number of a label that is given as a number or a name.

    Raises:
        ValueError: it is not among those declared.
    """
    text = str(label)
    if text in labels:
        return labels.index(text)
    if text.isdigit() and int(text) < len(labels):
        return int(text)
    raise ValueError(f"label {label!r} is not one of {', '.join(labels)}, nor a number below {len(labels)}")


def several(texts: Sequence[Sequence[np.ndarray]], context: ExampleContext) -> Features:
    """Each text, or pair, as `framed`, stacked; the example's weight is 1."""
    return {**stacked([framed(own, context) for own in texts]), "loss_weights": np.ones((), np.float32)}


def framed(texts: Sequence[np.ndarray], context: ExampleContext) -> Features:
    """One text or a pair as a row: `[CLS] A [SEP] B [SEP]` with types 0 and 1 in an encoder, A EOS B EOS in a decoder.

    `tasks.placeholders` soft tokens come first. Long texts are cut, the longer first.
    """
    vocabulary, encoder = context.vocabulary, context.family == "encoder"
    begin = [vocabulary.one_of("a task", *CLS)] if encoder else []
    end = vocabulary.one_of("a task", *SEP) if encoder else vocabulary.end("a task")
    texts = _fitting(texts, context.seq_len - context.placeholders - len(begin) - len(texts))
    soft = -1 - np.arange(context.placeholders)
    sides = [np.append(text, end) for text in texts]
    tokens = np.concatenate([soft, begin, *sides])
    features = placed(tokens, np.ones(len(tokens)), context.seq_len)
    # A pair's second text has type 1.
    types = np.arange(len(tokens)) >= len(soft) + len(begin) + len(sides[0])
    return features | ({"token_types": padded(types, context.seq_len)} if encoder else {})


def _fitting(texts: Sequence[np.ndarray], room: int) -> list[np.ndarray]:
    """The texts cut at their ends until they have `room` tokens together, the longest first."""
    sizes = np.array([len(text) for text in texts])
    while sizes.sum() > room:
        longest = int(sizes.argmax())
        others = np.delete(sizes, longest)
        second = int(others.max()) if len(others) else 0
        sizes[longest] = max(min(second, sizes[longest] - 1), sizes[longest] - (sizes.sum() - room), 0)
    return [text[:size] for text, size in zip(texts, sizes, strict=True)]


def states(model: Any, batch: Mapping[str, Any], key: Any) -> Any:
    """The model's states `[b, l, d]`; several texts of an example are rows of their own."""
    names = ("positions", "segment_ids", "token_types")
    rows = {name: batch[name].reshape(-1, batch[name].shape[-1]) for name in ("tokens", *names) if name in batch}
    return model(rows.pop("tokens"), **rows, key=key)


def pooled(model: Any, batch: Mapping[str, Any], key: Any) -> Any:
    """Each text's pooled states `[b, d]`; see `states`."""
    rows = (batch[name].reshape(-1, batch[name].shape[-1]) for name in ("tokens", "segment_ids"))
    return model.head.pooled(states(model, batch, key), *rows)
