"""Supervised text-to-text: predict the target of each pair from its input (Raffel et al. 2020, §2.4)."""

from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Int

from t5x_lite.errors import UserError
from t5x_lite.objectives.features import Pair, segments_of
from t5x_lite.objectives.inputs_targets import InputsTargets
from t5x_lite.objectives.objective import ExampleContext, Features, TokenRow
from t5x_lite.objectives.row_kinds import PAIRS, RowKind
from t5x_lite.objectives.special_tokens import input_start, target_start, target_tokens, text_end, text_start
from t5x_lite.objectives.supervised import TaskTokenizer
from t5x_lite.schema import Int as IntSetting
from t5x_lite.schema import setting


class TextToText(InputsTargets):
    """Predict the second text of a pair from the first. Features: see `InputsTargets`.

    Pairs are fields of a document (`data.parts=fields`). A row holds several of them, one segment each.
    Inputs and targets that are too long are cut. EOS ends the targets. The inputs are between what the tokenizer puts
    around a text (`special_tokens.text_start`, `text_end`): T5's EOS after it, BART's `<s>` and `</s>`, Llama's `<s>`
    before it. The targets of an encoder_decoder begin with that `<s>` too (`special_tokens.target_start`). In a decoder
    `train.seq_len` is the length of inputs and targets together.
    """

    name: ClassVar[str] = "text_to_text"
    rows: ClassVar[RowKind] = PAIRS

    target_len: IntSetting = setting(128, "length of the targets, EOS included", unit="tokens", ge=2)

    def check_context(self, context: ExampleContext) -> None:
        """Refuse a tokenizer without EOS, and a row without room for inputs."""
        self._eos(context)
        most_inputs, most_targets = self._limits(context)
        if most_targets <= len(target_start(context)):
            raise UserError(
                f"objective {self.name}: target_len {self.target_len} leaves no room for targets between the special "
                "tokens; make it larger"
            )
        if most_inputs <= len(input_start(context)):
            target_part = f"target_len {self.target_len} and " if context.family == "decoder" else ""
            raise UserError(
                f"objective {self.name}: train.seq_len {context.seq_len} leaves no room for inputs beside "
                f"{target_part}{context.num_virtual_tokens} virtual tokens and the special tokens"
            )

    def row_length(self, context: ExampleContext) -> int:
        """Return the largest number of tokens in a pair."""
        return context.seq_len + self.target_len

    def target_length(self, context: ExampleContext) -> int:
        return self.target_len

    def packed_sizes(
        self, lengths: Int[np.ndarray, "documents 2"], context: ExampleContext
    ) -> Int[np.ndarray, "documents n"]:
        """Return the lengths of inputs and targets after cutting, with what surrounds them; in a decoder, of both.

        The documents of a decoder begin with what its tokenizer puts before a text, and end with EOS.
        """
        cut_lengths = np.minimum(_with_start(lengths, context), self._limits(context))
        if context.family == "decoder":
            return cut_lengths.sum(1, keepdims=True)
        return cut_lengths + np.array([len(text_end(context)), 1])

    def is_truncated(
        self, lengths: Int[np.ndarray, "documents 2"], context: ExampleContext
    ) -> Bool[np.ndarray, "documents"]:
        """Return which pairs have an input or a target that is longer than its limit."""
        is_longer = _with_start(lengths, context) > np.array(self._limits(context))
        return is_longer[:, 0] | is_longer[:, 1]

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        """Make the features of the row's pairs; nothing is random."""
        eos = self._eos(context)
        start = _row_start(context)
        pairs = []
        for segment in segments_of(row.segments):
            tokens = row.tokens[segment]
            is_target = row.parts[segment] == 1
            inputs = tokens[row.parts[segment] == 0]
            targets = tokens[is_target & (tokens != eos)]
            pairs.append(self._pair(start, inputs, targets, context))
        return self.features(pairs, context)

    def records_example(self, inputs: str, targets: str, tokenizer: TaskTokenizer, context: ExampleContext) -> Features:
        """Make the features of one pair of texts, with the virtual tokens of the run before the inputs."""
        pair = self._pair(input_start(context), tokenizer.encode(inputs), tokenizer.encode(targets), context)
        return self.features([pair], context)

    def _eos(self, context: ExampleContext) -> int:
        return context.vocabulary.require_eos(f"objective {self.name}")

    def _limits(self, context: ExampleContext) -> tuple[int, int]:
        """Return the largest numbers of inputs and of targets, with what is before them, without EOS."""
        if context.family == "encoder_decoder":
            return context.seq_len - len(text_end(context)), self.target_len - 1
        return context.seq_len - self.target_len, self.target_len - 1

    def _pair(
        self,
        start: tuple[int, ...] | Int[np.ndarray, "_"],
        inputs: Int[np.ndarray, "_"],
        targets: Int[np.ndarray, "_"],
        context: ExampleContext,
    ) -> Pair:
        """Cut inputs and targets to their limits, and put special tokens around both: `start` before the inputs."""
        most_inputs, _ = self._limits(context)
        inputs = np.concatenate([start, inputs])[:most_inputs]
        inputs = np.concatenate([inputs, text_end(context)])
        return inputs.astype(np.int32), target_tokens(targets, self.target_len, self._eos(context), context)


def _row_start(context: ExampleContext) -> tuple[int, ...]:
    """Return the ids to put before the inputs of a row: the documents of a decoder begin with them already."""
    return () if context.family == "decoder" else text_start(context)


def _with_start(lengths: Int[np.ndarray, "documents 2"], context: ExampleContext) -> Int[np.ndarray, "documents 2"]:
    """Return the lengths of inputs and targets, with what is put before them."""
    return lengths + np.array([len(_row_start(context)), len(target_start(context))])
