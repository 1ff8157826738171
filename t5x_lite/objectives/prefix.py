"""Prefix language modelling: the first part of a text is given, the rest is predicted (Raffel et al. 2020, §3.2.1)."""

from typing import ClassVar

import numpy as np

from t5x_lite.objectives.features import InputsTargets, segments_of
from t5x_lite.objectives.objective import ExampleContext, Features, TokenRow


class Prefix(InputsTargets):
    """Each document of a row is cut in two at a place drawn uniformly. Features: see `features.text_to_text`.

    A decoder sees its inputs both ways where `model.prefix_lm` is set.
    """

    name: ClassVar[str] = "prefix"

    def row_length(self, context: ExampleContext) -> int:
        """A decoder's last token is only a target."""
        return context.seq_len + 1 if context.family == "decoder" else context.seq_len

    def target_length(self, context: ExampleContext) -> int:
        return context.seq_len

    def capacity(self, context: ExampleContext) -> tuple[int, ...]:
        """Wherever a text is cut, its parts fit where it fitted."""
        return (self.row_length(context),)

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        """Documents of one token have no second part and are left out."""
        pairs = []
        for part in segments_of(row.segments):
            tokens = row.tokens[part]
            if len(tokens) > 1:
                cut = rng.integers(1, len(tokens))
                pairs.append((tokens[:cut], tokens[cut:]))
        return self.features(pairs, context)
