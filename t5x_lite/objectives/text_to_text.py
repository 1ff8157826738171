"""Supervised text-to-text: targets from inputs, several pairs packed into a row (Raffel et al. 2020, §2.4)."""

from typing import ClassVar

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.objectives.features import InputsTargets, Pair, segments_of
from t5x_lite.objectives.objective import Features, Row, Rows, Task
from t5x_lite.objectives.supervised import Coder
from t5x_lite.schema import Int, setting


class TextToText(InputsTargets):
    """Pairs of texts (`data.parts=fields`), each a segment of its own. Features: see `features.text_to_text`.

    Longer inputs and targets are cut. EOS ends both of an encoder_decoder, the targets alone of a decoder, where
    `train.seq_len` is the length of both together.
    """

    name: ClassVar[str] = "text_to_text"
    rows: ClassVar[Rows] = "pairs"

    target_len: Int = setting(128, "length of the targets, EOS included", unit="tokens", ge=2)

    def check_task(self, task: Task) -> None:
        """Refuse a tokenizer without EOS, and a decoder's row that targets alone would fill."""
        task.vocabulary.end(self.name)
        if self._limits(task)[0] <= task.placeholders:
            raise UserError(
                f"objective {self.name}: train.seq_len {task.seq_len} leaves no room for inputs beside "
                + (f"target_len {self.target_len} and " if task.family == "decoder" else "")
                + f"{task.placeholders} soft tokens"
            )

    def row_length(self, task: Task) -> int:
        """Room for a pair."""
        return task.seq_len + self.target_len

    def target_length(self, task: Task) -> int:
        return self.target_len

    def _limits(self, task: Task) -> tuple[int, int]:
        """Tokens of inputs and of targets at most, without EOS."""
        if task.family == "encoder_decoder":
            return task.seq_len - 1, self.target_len - 1
        return task.seq_len - self.target_len, self.target_len - 1

    def sizes(self, lengths: np.ndarray, task: Task) -> np.ndarray:
        """Inputs and targets with their EOS, cut to the limits."""
        cut = np.minimum(lengths, self._limits(task))
        return cut + 1 if task.family == "encoder_decoder" else cut.sum(1, keepdims=True)

    def example(self, row: Row, task: Task, rng: np.random.Generator) -> Features:
        """Each document as it is; nothing is random."""
        eos, pairs = task.vocabulary.end(self.name), []
        for part in segments_of(row.segments):
            inputs, targets = (row.tokens[part][row.parts[part] == side] for side in (0, 1))
            pairs.append(self._pair(inputs, targets[targets != eos], task))
        return self.features(pairs, task)

    def records_example(self, inputs: str, targets: str, coder: Coder, task: Task) -> Features:
        """One pair of texts in a row of its own; soft tokens, if the run has any, before the inputs."""
        soft = -1 - np.arange(task.placeholders, dtype=np.int32)
        pair = self._pair(np.concatenate([soft, coder.encode(inputs)]), coder.encode(targets), task)
        return self.features([pair], task)

    def _pair(self, inputs: np.ndarray, targets: np.ndarray, task: Task) -> Pair:
        """Both cut to the limits, and ended."""
        most, most_targets = self._limits(task)
        eos = task.vocabulary.end(self.name)
        cut = inputs[:most]
        ended = np.append(cut, eos) if task.family == "encoder_decoder" else cut
        return ended.astype(np.int32), np.append(targets[:most_targets], eos).astype(np.int32)
