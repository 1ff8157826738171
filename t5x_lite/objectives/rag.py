"""Retrieval-augmented generation: the answer's probability, summed over passages (Lewis et al. 2020, §2.1)."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.models.config import Family
from t5x_lite.objectives.answer_probabilities import answer_log_probabilities
from t5x_lite.objectives.features import stacked
from t5x_lite.objectives.model_protocols import Array, Batch, DropoutKey, LanguageModel, LossSettings, LossSums
from t5x_lite.objectives.objective import ExampleContext, ExampleLengths, Features
from t5x_lite.objectives.passages import Passage, first_passages, read_passages
from t5x_lite.objectives.special_tokens import input_start, target_start, target_tokens, text_end
from t5x_lite.objectives.supervised import Record, Supervised, TaskTokenizer
from t5x_lite.objectives.text_to_text import TextToText
from t5x_lite.schema import Int, setting

SHORTEST_INPUTS = 8
"""Tokens of a passage and a query together, at the least."""


class Rag(Supervised):
    """Predict the answer y to a query x from several passages z: log Σ_z p(z|x) Π_i p(y_i|x, z, y_<i) (RAG-Sequence).

    p(z|x) is the softmax of the scores that the passages were retrieved with; the retriever does not train.

    Roles: `query`, `answer` (a text, or a list whose first one is learnt) and `passages`, a list of objects with
    `text`, `score` and perhaps `title`, best first, as `t5x-lite search --to` writes them. A long passage loses its
    end, then the query.

    Features: those of `text_to_text` for the query with each passage, with a first axis over the passages, where the
    weights of tokens are named `answer_weights`; `scores` and `passage_weights` (0 where a record has fewer passages)
    float32 `[passages]`; `loss_weights`, a float32 scalar.
    """

    name: ClassVar[str] = "rag"
    families: ClassVar[tuple[Family, ...]] = ("encoder_decoder", "decoder")
    roles: ClassVar[tuple[str, ...]] = ("query", "answer", "passages")
    uses_head: ClassVar[bool] = False
    checks_records: ClassVar[bool] = True

    passages: Int = setting(5, "passages of a query, the first of its record", ge=1, source="Lewis et al. 2020, §2.4")
    target_len: Int = setting(32, "longest answer, EOS included", unit="tokens", ge=2)
    temperature: float = setting(1.0, "divisor of the scores, as the retriever was trained with", gt=0)
    template: str = setting("{passage}\n\n{query}", "the inputs, of {passage} and {query}")

    @property
    def texts(self) -> int:
        return self.passages

    def problems(self) -> Iterator[str]:
        """Yield an error for a template without its parts."""
        for placeholder in ("{passage}", "{query}"):
            if self.template.count(placeholder) != 1:
                yield f"objective rag: template {self.template!r}: expected {placeholder} in it, once"

    def check_context(self, context: ExampleContext) -> None:
        """Refuse a tokenizer without EOS, and a row without room for a passage and a query."""
        context.vocabulary.require_eos(f"objective {self.name}")
        if self.target_len - 1 <= len(target_start(context)):
            raise UserError(
                f"objective {self.name}: target_len {self.target_len} leaves no room for answers between special "
                "tokens; make it larger"
            )
        if self._input_length(context) < SHORTEST_INPUTS:
            raise UserError(
                f"objective {self.name}: train.seq_len {context.seq_len} has no room for passages; in a decoder it "
                f"holds the answer's target_len {self.target_len} too"
            )

    def check_record(self, record: Record) -> None:
        """Refuse a record without a query, an answer, or a passage with a score."""
        if not isinstance(record["query"], str) or not record["query"].strip():
            raise ValueError("`query` is not a text, or an empty one")
        if not _answer(record):
            raise ValueError("`answer` is empty; remove the record")
        _scored_passages(record)

    def example_lengths(self, context: ExampleContext) -> ExampleLengths:
        if context.family == "decoder":
            return ExampleLengths(context.seq_len, context.seq_len, texts=self.texts)
        return ExampleLengths(context.seq_len, self.target_len, self.target_len, texts=self.texts)

    def examples(self, record: Record, tokenizer: TaskTokenizer, context: ExampleContext) -> list[Features]:
        self.check_record(record)
        eos = context.vocabulary.require_eos(f"objective {self.name}")
        targets = target_tokens(tokenizer.encode(_answer(record)), self.target_len, eos, context)
        scored = _scored_passages(record)
        passages = first_passages([passage for passage, _ in scored], self.passages)
        form = TextToText(target_len=self.target_len)
        rows = []
        for passage in passages:
            inputs = self._inputs(record["query"], passage or scored[0][0], tokenizer, context)
            rows.append(form.features([(inputs, targets)], context))
        features = stacked(rows)
        features["answer_weights"] = features.pop("loss_weights")
        scores = [score for _, score in scored][: self.passages]
        features["scores"] = np.array(scores + [0.0] * (self.passages - len(scores)), np.float32)
        features["passage_weights"] = (np.arange(self.passages) < len(scores)).astype(np.float32)
        features["loss_weights"] = np.array(1, np.float32)
        return [features]

    def scores(self, model: Any, batch: Batch, key: DropoutKey = None) -> dict[str, Array]:
        """Return log p(z|x) + log p(y|x, z) of each passage z, `[batch, passages]`."""
        return {"scores": self._joint_log_probabilities(model, batch, key, None)}

    def loss(self, model: Any, batch: Batch, key: DropoutKey, settings: LossSettings) -> Mapping[str, LossSums]:
        """Return -log Σ_z p(z|x) p(y|x, z), in nats per answer. The model is a `LanguageModel`."""
        import jax
        import jax.numpy as jnp

        from t5x_lite.models.losses import LossSums

        joint = self._joint_log_probabilities(model, batch, key, settings)
        weights = batch["loss_weights"]
        total = -jnp.sum(weights * jax.nn.logsumexp(joint, axis=-1))
        return {"loss": LossSums.of_loss(total, jnp.sum(weights))}

    def reference(self, record: Record) -> str:
        """Return the answer."""
        return _answer(record)

    def _input_length(self, context: ExampleContext) -> int:
        """Return the room for a passage and a query."""
        room = context.seq_len - len(input_start(context))
        if context.family == "decoder":
            return room - self.target_len
        return room - len(text_end(context))

    def _inputs(self, query: str, passage: Passage, tokenizer: TaskTokenizer, context: ExampleContext) -> np.ndarray:
        """Return the ids of a passage and a query by the template."""
        before, _, after = self.template.replace("{query}", query).partition("{passage}")
        start = tokenizer.encode(before)
        end = tokenizer.encode(after)
        room = self._input_length(context)
        text = tokenizer.encode(str(passage))[: max(room - len(start) - len(end), 0)]
        inputs = np.concatenate([start, text, end])[:room]
        end_of_inputs = np.array(text_end(context), np.int32)
        return np.concatenate([input_start(context), inputs, end_of_inputs]).astype(np.int32)

    def _joint_log_probabilities(
        self, model: LanguageModel, batch: Batch, key: DropoutKey, settings: LossSettings | None
    ) -> Array:
        import jax
        import jax.numpy as jnp

        from t5x_lite.models.vectors import MASKED_SCORE

        scores = jnp.where(batch["passage_weights"] > 0, batch["scores"] / self.temperature, MASKED_SCORE)
        return jax.nn.log_softmax(scores, axis=-1) + answer_log_probabilities(model, batch, key, settings)


def _answer(record: Record) -> str:
    """Return the answer, the first of several; empty if there is none."""
    answer = record["answer"]
    if isinstance(answer, list):
        answer = answer[0] if answer else ""
    return str(answer).strip()


def _scored_passages(record: Record) -> list[tuple[Passage, float]]:
    """Return the passages of a record with their scores.

    Raises:
        ValueError: there is none, or one without a score.
    """
    values = record["passages"]
    passages = read_passages(values)
    if not isinstance(values, list) or not passages:
        raise ValueError("`passages` is not a list of passages, or an empty one")
    scores = []
    for value in values:
        score = value.get("score") if isinstance(value, Mapping) else None
        if not isinstance(score, int | float) or not math.isfinite(score):
            raise ValueError("a passage has no number in `score`; `t5x-lite search --to` writes passages with scores")
        scores.append(float(score))
    return list(zip(passages, scores, strict=True))
