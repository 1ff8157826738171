"""Prefix language modelling: predict the rest of a text from its first part (Raffel et al. 2020, §3.2.1)."""

from typing import ClassVar

import numpy as np

from t5x_lite.objectives.features import segments_of
from t5x_lite.objectives.inputs_targets import InputsTargets
from t5x_lite.objectives.objective import ExampleContext, Features, TokenRow


class Prefix(InputsTargets):
    """Cut each document of a row in two at a uniformly random position. Features: see `InputsTargets`.

    In a decoder the inputs attend to each other in both directions if `model.prefix_lm` is set.
    """

    name: ClassVar[str] = "prefix"

    def row_length(self, context: ExampleContext) -> int:
        """Return the row's length, with one more token in a decoder, whose last token is only a target."""
        if context.family == "decoder":
            return context.seq_len + 1
        return context.seq_len

    def target_length(self, context: ExampleContext) -> int:
        return context.seq_len

    def row_capacity(self, context: ExampleContext) -> tuple[int, ...]:
        """Return the row's length: the two parts of a text always fit where the text fits."""
        return (self.row_length(context),)

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        """Make the features of the row's documents. Documents of one token have no second part and are left out."""
        pairs = []
        for segment in segments_of(row.segments):
            tokens = row.tokens[segment]
            if len(tokens) > 1:
                cut = rng.integers(1, len(tokens))
                pairs.append((tokens[:cut], tokens[cut:]))
        return self.features(pairs, context)
