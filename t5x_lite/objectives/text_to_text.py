"""Supervised text-to-text: predict the target of each pair from its input (Raffel et al. 2020, §2.4)."""

from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Int

from t5x_lite.errors import UserError
from t5x_lite.objectives.features import Pair, segments_of
from t5x_lite.objectives.framing import soft_tokens
from t5x_lite.objectives.inputs_targets import InputsTargets
from t5x_lite.objectives.objective import ExampleContext, Features, RowKind, TokenRow
from t5x_lite.objectives.supervised import Coder
from t5x_lite.schema import Int as IntSetting
from t5x_lite.schema import setting


class TextToText(InputsTargets):
    """Predict the second text of a pair from the first. Features: see `InputsTargets`.

    Pairs are fields of a document (`data.parts=fields`). A row holds several of them, one segment each.
    Inputs and targets that are too long are cut. EOS ends both in an encoder_decoder. In a decoder EOS ends only the
    targets, and `train.seq_len` is the length of inputs and targets together.
    """

    name: ClassVar[str] = "text_to_text"
    rows: ClassVar[RowKind] = "pairs"

    target_len: IntSetting = setting(128, "length of the targets, EOS included", unit="tokens", ge=2)

    def check_context(self, context: ExampleContext) -> None:
        """Refuse a tokenizer without EOS, and a row without room for inputs."""
        self._eos(context)
        most_inputs, _ = self._limits(context)
        if most_inputs <= context.placeholders:
            target_part = f"target_len {self.target_len} and " if context.family == "decoder" else ""
            raise UserError(
                f"objective {self.name}: train.seq_len {context.seq_len} leaves no room for inputs beside "
                f"{target_part}{context.placeholders} soft tokens"
            )

    def row_length(self, context: ExampleContext) -> int:
        """Return the largest number of tokens in a pair."""
        return context.seq_len + self.target_len

    def target_length(self, context: ExampleContext) -> int:
        return self.target_len

    def sizes(self, lengths: Int[np.ndarray, "documents 2"], context: ExampleContext) -> Int[np.ndarray, "documents n"]:
        """Return the lengths of inputs and targets after cutting, with EOS; in a decoder, of both together."""
        cut_lengths = np.minimum(lengths, self._limits(context))
        if context.family == "encoder_decoder":
            return cut_lengths + 1
        return cut_lengths.sum(1, keepdims=True)

    def is_truncated(
        self, lengths: Int[np.ndarray, "documents 2"], context: ExampleContext
    ) -> Bool[np.ndarray, "documents"]:
        """Return which pairs have an input or a target that is longer than its limit."""
        most_inputs, most_targets = self._limits(context)
        return (lengths[:, 0] > most_inputs) | (lengths[:, 1] > most_targets)

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        """Make the features of the row's pairs; nothing is random."""
        eos = self._eos(context)
        pairs = []
        for segment in segments_of(row.segments):
            tokens = row.tokens[segment]
            is_target = row.parts[segment] == 1
            inputs = tokens[row.parts[segment] == 0]
            targets = tokens[is_target & (tokens != eos)]
            pairs.append(self._pair(inputs, targets, context))
        return self.features(pairs, context)

    def records_example(self, inputs: str, targets: str, coder: Coder, context: ExampleContext) -> Features:
        """Make the features of one pair of texts, with the soft tokens of the run before the inputs."""
        input_ids = np.concatenate([soft_tokens(context), coder.encode(inputs)])
        pair = self._pair(input_ids, coder.encode(targets), context)
        return self.features([pair], context)

    def _eos(self, context: ExampleContext) -> int:
        return context.vocabulary.require_eos(f"objective {self.name}")

    def _limits(self, context: ExampleContext) -> tuple[int, int]:
        """Return the largest numbers of inputs and of targets, without EOS."""
        if context.family == "encoder_decoder":
            return context.seq_len - 1, self.target_len - 1
        return context.seq_len - self.target_len, self.target_len - 1

    def _pair(self, inputs: np.ndarray, targets: np.ndarray, context: ExampleContext) -> Pair:
        """Cut inputs and targets to their limits and append EOS."""
        most_inputs, most_targets = self._limits(context)
        eos = self._eos(context)
        inputs = inputs[:most_inputs]
        if context.family == "encoder_decoder":
            inputs = np.append(inputs, eos)
        targets = np.append(targets[:most_targets], eos)
        return inputs.astype(np.int32), targets.astype(np.int32)
