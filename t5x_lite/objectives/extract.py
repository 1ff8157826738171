"""Extractive question answering: the answer is a span of the context (Devlin et al. 2019, §4.2-4.3)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from t5x_lite.errors import UserError
from t5x_lite.models.config import Family, ModelConfig
from t5x_lite.models.head_config import HeadConfig
from t5x_lite.objectives.model_protocols import Array, Batch, DropoutKey, LossSettings, LossSums, TaskModel
from t5x_lite.objectives.objective import ExampleContext, Features
from t5x_lite.objectives.special_tokens import build_text_features, num_encoder_special_tokens, task_template
from t5x_lite.objectives.supervised import Record, Supervised, TaskTokenizer, text_states
from t5x_lite.schema import Int as IntSetting
from t5x_lite.schema import setting

NO_SPAN = (-1, -1)
"""First and last token of an answer that is not in the context."""
UNANSWERABLE = "unanswerable"
"""The answer of a text-to-text model to a question without an answer."""


class Extract(Supervised):
    """Predict the first and the last token of the answer in a context.

    Roles: `question`, `context`, `answers` (texts) and `starts` (their first characters). A question without answers is
    unanswerable.

    A long context becomes several examples, overlapping windows. Features: those of `build_text_features`; `start` and
    `end` int32, scalars, the positions of the answer's first and last token, or the position of [CLS] if the window
    does not hold the answer; `allowed` float32 `[seq_len]`, 1 for [CLS] and for the tokens of the context; `places`
    int32 `[seq_len, 2]`, the characters of the context that each token stands for, -1 for [CLS]; `loss_weights`
    float32, a scalar. A record whose answer is not in its context has weight 0: it is evaluated but not learnt, as in
    BERT's own script.
    """

    name: ClassVar[str] = "extract"
    families: ClassVar[tuple[Family, ...]] = ("encoder",)
    roles: ClassVar[tuple[str, ...]] = ("question", "context", "answers", "starts")
    flaw: ClassVar[str] = "an answer that is not in its context at the place that is given"

    window_stride: IntSetting = setting(128, "tokens from the start of one window of the context to the next", ge=1)
    question_len: IntSetting = setting(64, "longest question", unit="tokens", ge=1)
    answer_len: IntSetting = setting(30, "longest answer", unit="tokens", ge=1)
    null_threshold: float = setting(
        0.0, "predict no answer if its score is higher than that of the best span by more than this"
    )
    unanswerable: bool = setting(False, "questions may have no answer (SQuAD 2.0)")

    def head(self, model: ModelConfig) -> HeadConfig:
        """Return a head with two scores for each token: as the first and as the last token of the answer."""
        return HeadConfig(outputs=2, pool="none")

    def check_context(self, context: ExampleContext) -> None:
        """Refuse a row without room for a context beside the question."""
        room = context.seq_len - context.num_virtual_tokens - num_encoder_special_tokens(context.vocabulary, texts=2)
        if room <= self.question_len:
            raise UserError(
                f"objective extract: train.seq_len {context.seq_len} leaves no room for a context beside "
                f"question_len {self.question_len} and {context.num_virtual_tokens} virtual tokens"
            )

    def check_record(self, record: Record) -> None:
        """Refuse a record with another number of starts than answers, or with a start that is no number."""
        if len(record["starts"]) != len(record["answers"]):
            raise ValueError(f"{len(record['answers'])} answers but {len(record['starts'])} starts")
        self.learnable(record)
        super().check_record(record)

    def learnable(self, record: Record) -> bool:
        """Return True if the first answer is in the context at its place, or if there is no answer."""
        if not len(record["answers"]):
            return True
        answer = str(record["answers"][0])
        start = int(record["starts"][0])
        return bool(answer) and record["context"][start : start + len(answer)] == answer

    def examples(self, record: Record, tokenizer: TaskTokenizer, context: ExampleContext) -> list[Features]:
        question = tokenizer.encode(str(record["question"]).strip())[: self.question_len]
        token_ids, offsets = tokenizer.encode_with_offsets(str(record["context"]))
        is_learnable = self.learnable(record)
        answer = NO_SPAN
        if is_learnable:
            answer = _answer_span(record, offsets)

        room = (
            context.seq_len
            - context.num_virtual_tokens
            - num_encoder_special_tokens(context.vocabulary, texts=2)
            - len(question)
        )
        stride = min(self.window_stride, room)
        windows: list[Features] = []
        for start in range(0, max(len(token_ids) - room, 0) + stride, stride):
            stop = min(start + room, len(token_ids))
            window_answer = NO_SPAN
            if start <= answer[0] and answer[1] < stop:
                window_answer = (answer[0] - start, answer[1] - start)
            features = _window_features(question, token_ids[start:stop], offsets[start:stop], window_answer, context)
            features["loss_weights"] = np.array(is_learnable, np.float32)
            windows.append(features)
        return windows

    def scores(self, model: TaskModel, batch: Batch, key: DropoutKey = None) -> dict[str, Array]:
        """Return the scores of each token as the first and as the last of the answer."""
        import jax.numpy as jnp

        from t5x_lite.models.vectors import MASKED_SCORE

        token_scores = model.head(text_states(model, batch, key), key)
        scores = jnp.where(batch["allowed"][..., None] > 0, token_scores, MASKED_SCORE)
        return {"start": scores[..., 0], "end": scores[..., 1]}

    def loss(self, model: TaskModel, batch: Batch, key: DropoutKey, settings: LossSettings) -> Mapping[str, LossSums]:
        """Return the mean of the cross-entropies of the first and of the last token over all tokens of the window."""
        from t5x_lite.models import losses

        scores = self.scores(model, batch, key)
        half_weights = 0.5 * batch["loss_weights"]
        start_loss = losses.class_cross_entropy(scores["start"], batch["start"], half_weights)
        end_loss = losses.class_cross_entropy(scores["end"], batch["end"], half_weights)
        return {"loss": start_loss + end_loss}

    def prediction(self, record: Record, examples: Sequence[Features], scores: Sequence[Features]) -> str:
        """Return the text of the best span of all windows, or "" if `unanswerable` and no answer scores higher."""
        best_score = -np.inf
        null_score = np.inf
        answer = ""
        for features, window_scores in zip(examples, scores, strict=True):
            start_scores = window_scores["start"]
            end_scores = window_scores["end"]
            allowed = np.flatnonzero(features["allowed"])
            is_context = features["places"][allowed, 0] >= 0
            context_tokens = allowed[is_context]
            (cls,) = allowed[~is_context]
            null_score = min(null_score, float(start_scores[cls] + end_scores[cls]))
            if not len(context_tokens):
                continue
            first, last, score = self._best_span(start_scores[context_tokens], end_scores[context_tokens])
            if score > best_score:
                best_score = score
                start, _ = features["places"][context_tokens[first]]
                _, end = features["places"][context_tokens[last]]
                answer = record["context"][start:end].strip()
        if self.unanswerable and null_score - best_score > self.null_threshold:
            return ""
        return answer

    def to_text(self, record: Record) -> str:
        """Return the first right answer."""
        if len(record["answers"]):
            return str(record["answers"][0])
        return UNANSWERABLE

    def from_text(self, text: str, record: Record) -> str:
        """Return the answer, or "" if the model has written that there is none."""
        answer = text.strip()
        if self.unanswerable and answer == UNANSWERABLE:
            return ""
        return answer

    def reference(self, record: Record) -> list[str]:
        """Return all right answers."""
        return [str(answer) for answer in record["answers"]]

    def _best_span(self, start_scores: np.ndarray, end_scores: np.ndarray) -> tuple[int, int, float]:
        """Return the first and last token of the span of at most `answer_len` tokens with the best sum, and the sum."""
        sums = start_scores[:, None] + end_scores[None, :]
        tokens = np.arange(len(start_scores))
        distance = tokens[None, :] - tokens[:, None]
        is_span = (distance >= 0) & (distance < self.answer_len)
        sums = np.where(is_span, sums, -np.inf)
        first, last = np.unravel_index(sums.argmax(), sums.shape)
        return int(first), int(last), float(sums[first, last])


def _answer_span(record: Record, offsets: Int[np.ndarray, "n 2"]) -> tuple[int, int]:
    """Return the first and last token of the first answer."""
    if not len(record["answers"]):
        return NO_SPAN
    start = int(record["starts"][0])
    end = start + len(str(record["answers"][0]))
    tokens = np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < end))
    if not len(tokens):
        return NO_SPAN
    return int(tokens[0]), int(tokens[-1])


def _window_features(
    question: Int[np.ndarray, "q"],
    token_ids: Int[np.ndarray, "n"],
    offsets: Int[np.ndarray, "n 2"],
    answer: tuple[int, int],
    context: ExampleContext,
) -> dict[str, np.ndarray]:
    """Return the features of one window, without its weight; `answer` counts from the start of the window."""
    template = task_template(context)
    window_start = context.num_virtual_tokens + len(template.start) + len(question) + 1 + len(template.between)
    window = slice(window_start, window_start + len(token_ids))
    # XLNet's <cls> comes after the [SEP] of the context.
    cls = window.stop + 1 if template.last else context.num_virtual_tokens
    allowed = np.zeros(context.seq_len, np.float32)
    allowed[cls] = 1
    allowed[window] = 1
    places = np.zeros((context.seq_len, 2), np.int32)
    places[window] = offsets
    places[cls] = NO_SPAN
    start = cls
    end = cls
    if answer != NO_SPAN:
        start = window_start + answer[0]
        end = window_start + answer[1]
    return {
        **build_text_features([question, token_ids], context),
        "start": np.array(start, np.int32),
        "end": np.array(end, np.int32),
        "allowed": allowed,
        "places": places,
    }
