"""Prefix language modelling: the first part of a text is given, the rest is predicted (Raffel et al. 2020, §3.2.1)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from t5x_lite.models.config import Family
from t5x_lite.objectives.features import segments_of, text_to_text, text_to_text_loss
from t5x_lite.objectives.objective import Features, Lengths, Losses, Objective, Row, Task


class Prefix(Objective):
    """Each document of a row is cut in two at a place drawn uniformly. Features: see `features.text_to_text`.

    A decoder sees its inputs both ways where `model.prefix_lm` is set.
    """

    name: ClassVar[str] = "prefix"
    families: ClassVar[tuple[Family, ...]] = ("decoder", "encoder_decoder")

    def row_length(self, task: Task) -> int:
        """A decoder's last token is only a target."""
        return task.seq_len + 1 if task.family == "decoder" else task.seq_len

    def lengths(self, task: Task) -> Lengths:
        """What an example costs."""
        return Lengths(task.seq_len, task.seq_len, task.seq_len if task.family == "encoder_decoder" else 0)

    def example(self, row: Row, task: Task, rng: np.random.Generator) -> Features:
        """Documents of one token have no second part and are left out."""
        pairs = []
        for part in segments_of(row.segments):
            tokens = row.tokens[part]
            if len(tokens) > 1:
                cut = rng.integers(1, len(tokens))
                pairs.append((tokens[:cut], tokens[cut:]))
        return text_to_text(pairs, task.family, task.seq_len, task.seq_len)

    def loss(self, model: Any, batch: Mapping[str, Any], key: Any, losses: Losses) -> Mapping[str, Any]:
        """Cross-entropy of the second part."""
        return text_to_text_loss(model, batch, key, losses)
