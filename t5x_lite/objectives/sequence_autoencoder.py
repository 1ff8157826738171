"""Sequence autoencoding: read a text, then reproduce it from the state after it (Dai & Le 2015, §2)."""

from typing import ClassVar

import numpy as np
from jaxtyping import Int

from t5x_lite.models.config import Family, ModelConfig
from t5x_lite.objectives.features import segments_of
from t5x_lite.objectives.inputs_targets import InputsTargets
from t5x_lite.objectives.objective import ExampleContext, Features, TokenRow
from t5x_lite.objectives.row_kinds import DOCUMENTS, RowKind


class SequenceAutoencoder(InputsTargets):
    """Read each document of a row and its EOS, then predict both again. Features: see `InputsTargets`.

    The same recurrence reads and reproduces: `x EOS x EOS` is one text, whose second part has the loss.
    """

    name: ClassVar[str] = "sequence_autoencoder"
    families: ClassVar[tuple[Family, ...]] = ("decoder",)
    rows: ClassVar[RowKind] = DOCUMENTS

    def check(self, model: ModelConfig) -> None:
        """Refuse layers of attention, which would look up the text that they reproduce."""
        if len(model.state_mixers) < len(model.first) + len(model.period):
            raise ValueError(
                f"objective {self.name} is for recurrences, which have to remember a text; a layer of the model is "
                "attention, which would copy it"
            )

    def check_context(self, context: ExampleContext) -> None:
        """Refuse a tokenizer without EOS."""
        context.vocabulary.require_eos(f"objective {self.name}")

    def row_length(self, context: ExampleContext) -> int:
        """Return the tokens of the longest text: two of it and an EOS fill a row; the last EOS is only a target."""
        return (context.seq_len - 1) // 2

    def target_length(self, context: ExampleContext) -> int:
        return self.row_length(context) + 1

    def packed_sizes(
        self, lengths: Int[np.ndarray, "documents parts"], context: ExampleContext
    ) -> Int[np.ndarray, "_ n"]:
        """Return the length of each document twice, with the EOS between."""
        return 2 * lengths.sum(1, keepdims=True) + 1

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        eos = context.vocabulary.require_eos(f"objective {self.name}")
        texts = [np.append(row.tokens[segment], eos).astype(np.int32) for segment in segments_of(row.segments)]
        return self.features([(text, text) for text in texts], context)
