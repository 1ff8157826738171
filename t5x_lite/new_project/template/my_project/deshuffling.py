"""Deshuffling: restore the order of shuffled tokens (Liu et al. 2019; Raffel et al. 2020, Table 3)."""

from typing import ClassVar

import numpy as np

from t5x_lite.objectives.features import segments_of
from t5x_lite.objectives.inputs_targets import InputsTargets
from t5x_lite.objectives.objective import ExampleContext, Features, TokenRow
from t5x_lite.schema import Int, setting


class Deshuffling(InputsTargets):
    """Restore a text whose tokens were shuffled within windows."""

    name: ClassVar[str] = "my_project_deshuffling"

    window: Int = setting(8, "tokens that are shuffled together", unit="tokens", ge=2)

    def row_length(self, context: ExampleContext) -> int:
        """Return the tokens of a text; in a decoder, inputs and targets share the row."""
        return context.seq_len if context.family == "encoder_decoder" else context.seq_len // 2

    def target_length(self, context: ExampleContext) -> int:
        """Return the length of the targets."""
        return context.seq_len

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        """Shuffle each segment of the row. `rng` depends on the seed, the epoch and the row only."""
        pairs = []
        for part in segments_of(row.segments):
            tokens = row.tokens[part]
            shuffled = tokens.copy()
            for start in range(0, len(tokens), self.window):
                rng.shuffle(shuffled[start : start + self.window])
            pairs.append((shuffled, tokens))
        return self.features(pairs, context)
