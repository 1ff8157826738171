"""Supervised text-to-text: targets from inputs, several pairs packed into a row (Raffel et al. 2020, §2.4)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from t5x_lite.models.config import Family
from t5x_lite.objectives.features import Pair, segments_of, text_to_text, text_to_text_loss
from t5x_lite.objectives.objective import Features, Lengths, Losses, Objective, Row, Rows, Task
from t5x_lite.schema import Int, setting


class TextToText(Objective):
    """Pairs of texts (`data.parts=fields`), each a segment of its own. Features: see `features.text_to_text`.

    Longer inputs and targets are cut. EOS ends both of an encoder_decoder, the targets alone of a decoder, where
    `train.seq_len` is the length of both together.
    """

    name: ClassVar[str] = "text_to_text"
    families: ClassVar[tuple[Family, ...]] = ("encoder_decoder", "decoder")

    target_len: Int = setting(128, "length of the targets, EOS included", unit="tokens", ge=2)

    @property
    def rows(self) -> Rows:
        """Each document has two fields."""
        return "pairs"

    def check_task(self, task: Task) -> None:
        """Refuse a tokenizer without EOS, and a decoder's row that targets alone would fill."""
        task.vocabulary.end(self.name)

    def row_length(self, task: Task) -> int:
        """Room for a pair."""
        return task.seq_len + self.target_len

    def _limits(self, task: Task) -> tuple[int, int]:
        """Tokens of inputs and of targets at most, without EOS."""
        if task.family == "encoder_decoder":
            return task.seq_len - 1, self.target_len - 1
        return max(task.seq_len - self.target_len, 1), min(self.target_len, task.seq_len) - 1

    def sizes(self, lengths: np.ndarray, task: Task) -> np.ndarray:
        """Inputs and targets with their EOS, cut to the limits."""
        cut = np.minimum(lengths, self._limits(task))
        return cut + 1 if task.family == "encoder_decoder" else cut.sum(1, keepdims=True)

    def capacity(self, task: Task) -> tuple[int, ...]:
        """Room of a row."""
        return (task.seq_len, self.target_len) if task.family == "encoder_decoder" else (task.seq_len,)

    def lengths(self, task: Task) -> Lengths:
        """What an example costs."""
        if task.family == "decoder":
            return Lengths(task.seq_len, task.seq_len)
        return Lengths(task.seq_len, self.target_len, self.target_len)

    def example(self, row: Row, task: Task, rng: np.random.Generator) -> Features:
        """Each document as it is; nothing is random."""
        pairs = [self._pair(row.tokens[part], row.parts[part], task) for part in segments_of(row.segments)]
        return text_to_text(pairs, task.family, task.seq_len, self.target_len)

    def _pair(self, tokens: np.ndarray, parts: np.ndarray, task: Task) -> Pair:
        eos = task.vocabulary.end(self.name)
        most, most_targets = self._limits(task)
        inputs, targets = tokens[parts == 0][:most], tokens[parts == 1]
        targets = targets[targets != eos][:most_targets]
        ended = np.append(inputs, eos) if task.family == "encoder_decoder" else inputs
        return ended.astype(np.int32), np.append(targets, eos).astype(np.int32)

    def loss(self, model: Any, batch: Mapping[str, Any], key: Any, losses: Losses) -> Mapping[str, Any]:
        """Cross-entropy of the targets."""
        return text_to_text_loss(model, batch, key, losses)
