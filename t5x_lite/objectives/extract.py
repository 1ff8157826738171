"""Extractive question answering: where in a context the answer stands (Devlin et al. 2019, §4.2-4.3)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.models.config import Family, HeadConfig, ModelConfig
from t5x_lite.objectives.objective import ExampleContext, Features, Losses
from t5x_lite.objectives.supervised import Coder, Record, Supervised, framed, states
from t5x_lite.schema import Int, setting

FORBIDDEN = 1e9
"""Taken off the scores of tokens that cannot begin or end an answer."""
NOWHERE = (-1, -1)
"""First and last token of an answer that is not there."""
UNANSWERABLE = "unanswerable"
"""What a text-to-text model writes where there is no answer."""


class Extract(Supervised):
    """Roles `question`, `context`, `answers` (texts) and `starts` (their first characters); none: not answerable.

    A long context becomes several examples, windows that overlap. Features: those of `framed`, `start`, `end` int32
    (places of the answer's first and last token, the first token of the row where the window does not hold it),
    `allowed` float32 `[seq_len]` (1 for the context's tokens and that first one), `places` int32 `[seq_len, 2]`
    (characters of the context), `loss_weights`. A record whose answer is not in its context has no weight: it is left
    out of training, as in BERT's own script, and evaluated.
    """

    name: ClassVar[str] = "extract"
    families: ClassVar[tuple[Family, ...]] = ("encoder",)
    roles: ClassVar[tuple[str, ...]] = ("question", "context", "answers", "starts")
    flaw: ClassVar[str] = "an answer that is not in its context at the place that is given"

    window_stride: Int = setting(128, "tokens from the start of one window of the context to the next", ge=1)
    question_len: Int = setting(64, "longest question", unit="tokens", ge=1)
    answer_len: Int = setting(30, "longest answer", unit="tokens", ge=1)
    null_threshold: float = setting(0.0, "no answer where its score beats the best span's by more than this")
    unanswerable: bool = setting(False, "questions may have no answer (SQuAD 2.0)")

    def head(self, model: ModelConfig) -> HeadConfig:
        """A score for the beginning and one for the end."""
        return HeadConfig(outputs=2, pool="none")

    def check_context(self, context: ExampleContext) -> None:
        """Refuse a row that questions would fill."""
        if context.seq_len - context.placeholders - 3 <= self.question_len:
            raise UserError(
                f"objective extract: train.seq_len {context.seq_len} leaves no room for a context beside "
                f"question_len {self.question_len} and {context.placeholders} soft tokens"
            )

    def learnable(self, record: Record) -> bool:
        """Whether its first answer is in its context, or it has none."""
        if not len(record["answers"]):
            return True
        text, begin = str(record["answers"][0]), int(record["starts"][0])
        return bool(text) and record["context"][begin : begin + len(text)] == text

    def examples(self, record: Record, coder: Coder, context: ExampleContext) -> list[Features]:
        question = coder.encode(str(record["question"]).strip())[: self.question_len]
        ids, places = coder.encode_placed(str(record["context"]))
        lead, base = context.placeholders, context.placeholders + len(question) + 2
        room, known = context.seq_len - base - 1, self.learnable(record)
        span = self._span(record, places) if known else NOWHERE
        step = min(self.window_stride, room)
        windows: list[Features] = []
        for first in range(0, max(len(ids) - room, 0) + step, step):
            stop = min(first + room, len(ids))
            allowed, placed = np.zeros(context.seq_len, np.float32), np.zeros((context.seq_len, 2), np.int32)
            allowed[[lead, *range(base, base + stop - first)]] = 1
            placed[base : base + stop - first] = places[first:stop]
            inside = first <= span[0] and span[1] < stop and span[0] >= 0
            start, end = (np.asarray(base + at - first if inside else lead, np.int32) for at in span)
            targets = {"start": start, "end": end, "loss_weights": np.asarray(known, np.float32)}
            row = framed([question, ids[first:stop]], context)
            windows.append({**row, **targets, "allowed": allowed, "places": placed})
        return windows

    def _span(self, record: Record, places: np.ndarray) -> tuple[int, int]:
        """First and last token of the first answer."""
        if not len(record["answers"]):
            return NOWHERE
        begin, end = int(record["starts"][0]), int(record["starts"][0]) + len(str(record["answers"][0]))
        touched = np.flatnonzero((places[:, 1] > begin) & (places[:, 0] < end))
        return (int(touched[0]), int(touched[-1])) if len(touched) else NOWHERE

    def scores(self, model: Any, batch: Mapping[str, Any], key: Any = None) -> dict[str, Any]:
        """Of each token as the beginning and as the end."""
        both = model.head(states(model, batch, key), key)
        closed = FORBIDDEN * (1 - batch["allowed"])
        return {"start": both[..., 0] - closed, "end": both[..., 1] - closed}

    def loss(self, model: Any, batch: Mapping[str, Any], key: Any, losses: Losses) -> Mapping[str, Any]:
        """Cross-entropy of the beginning and of the end, each over all tokens of the window, halved."""
        scored, weights = self.scores(model, batch, key), batch["loss_weights"]
        both = [losses.classes(scored[side], batch[side], 0.5 * weights) for side in ("start", "end")]
        return {"loss": both[0] + both[1]}

    def prediction(self, record: Record, examples: Sequence[Features], scores: Sequence[Features]) -> str:
        """The best span's text over all windows; empty where `unanswerable` and no answer scores best."""
        best, answer, null = -np.inf, "", np.inf
        for example, scored in zip(examples, scores, strict=True):
            context = np.flatnonzero(example["allowed"])
            null_place, context = context[0], context[1:]
            null = min(null, float(scored["start"][null_place] + scored["end"][null_place]))
            if not len(context):
                continue
            sums = scored["start"][context][:, None] + scored["end"][context][None, :]
            order = np.arange(len(context))
            apart = order[None, :] - order[:, None]
            sums = np.where((apart >= 0) & (apart < self.answer_len), sums, -np.inf)
            first, last = np.unravel_index(sums.argmax(), sums.shape)
            if sums[first, last] > best:
                best = float(sums[first, last])
                begin, end = example["places"][context[first], 0], example["places"][context[last], 1]
                answer = record["context"][begin:end].strip()
        return "" if self.unanswerable and null - best > self.null_threshold else answer

    def to_text(self, record: Record) -> str:
        """The first right answer."""
        return str(record["answers"][0]) if len(record["answers"]) else UNANSWERABLE

    def from_text(self, text: str, record: Record) -> str:
        """The answer, empty where the model says that there is none."""
        return "" if self.unanswerable and text.strip() == UNANSWERABLE else text.strip()

    def reference(self, record: Record) -> list[str]:
        """All right answers."""
        return [str(answer) for answer in record["answers"]]
