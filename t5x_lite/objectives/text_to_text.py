"""Supervised text-to-text: targets from inputs, several pairs packed into a row (Raffel et al. 2020, §2.4)."""

from typing import ClassVar

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.objectives.features import InputsTargets, Pair, segments_of
from t5x_lite.objectives.objective import ExampleContext, Features, RowKind, TokenRow
from t5x_lite.objectives.supervised import Coder
from t5x_lite.schema import Int, setting


class TextToText(InputsTargets):
    """Pairs of texts (`data.parts=fields`), each a segment of its own. Features: see `features.text_to_text`.

    Longer inputs and targets are cut. EOS ends both of an encoder_decoder, the targets alone of a decoder, where
    `train.seq_len` is the length of both together.
    """

    name: ClassVar[str] = "text_to_text"
    rows: ClassVar[RowKind] = "pairs"

    target_len: Int = setting(128, "length of the targets, EOS included", unit="tokens", ge=2)

    def check_context(self, context: ExampleContext) -> None:
        """Refuse a tokenizer without EOS, and a decoder's row that targets alone would fill."""
        context.vocabulary.end(self.name)
        if self._limits(context)[0] <= context.placeholders:
            raise UserError(
                f"objective {self.name}: train.seq_len {context.seq_len} leaves no room for inputs beside "
                + (f"target_len {self.target_len} and " if context.family == "decoder" else "")
                + f"{context.placeholders} soft tokens"
            )

    def row_length(self, context: ExampleContext) -> int:
        """Room for a pair."""
        return context.seq_len + self.target_len

    def target_length(self, context: ExampleContext) -> int:
        return self.target_len

    def _limits(self, context: ExampleContext) -> tuple[int, int]:
        """Tokens of inputs and of targets at most, without EOS."""
        if context.family == "encoder_decoder":
            return context.seq_len - 1, self.target_len - 1
        return context.seq_len - self.target_len, self.target_len - 1

    def sizes(self, lengths: np.ndarray, context: ExampleContext) -> np.ndarray:
        """Inputs and targets with their EOS, cut to the limits."""
        cut = np.minimum(lengths, self._limits(context))
        return cut + 1 if context.family == "encoder_decoder" else cut.sum(1, keepdims=True)

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        """Each document as it is; nothing is random."""
        eos, pairs = context.vocabulary.end(self.name), []
        for part in segments_of(row.segments):
            inputs, targets = (row.tokens[part][row.parts[part] == side] for side in (0, 1))
            pairs.append(self._pair(inputs, targets[targets != eos], context))
        return self.features(pairs, context)

    def records_example(self, inputs: str, targets: str, coder: Coder, context: ExampleContext) -> Features:
        """One pair of texts in a row of its own; soft tokens, if the run has any, before the inputs."""
        soft = -1 - np.arange(context.placeholders, dtype=np.int32)
        pair = self._pair(np.concatenate([soft, coder.encode(inputs)]), coder.encode(targets), context)
        return self.features([pair], context)

    def _pair(self, inputs: np.ndarray, targets: np.ndarray, context: ExampleContext) -> Pair:
        """Both cut to the limits, and ended."""
        most, most_targets = self._limits(context)
        eos = context.vocabulary.end(self.name)
        cut = inputs[:most]
        ended = np.append(cut, eos) if context.family == "encoder_decoder" else cut
        return ended.astype(np.int32), np.append(targets[:most_targets], eos).astype(np.int32)
