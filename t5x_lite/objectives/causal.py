"""Causal language modelling: predict each token from those before it in its document (Radford et al. 2018, §3.1)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from t5x_lite.objectives.objective import CrossEntropy, Features, Objective


class Causal(Objective):
    """Next-token prediction.

    Features, each `[batch, seq_len]`: `tokens`, `targets` (the next token), `positions` (restart in each document),
    `segment_ids` (0 is padding) as int32, and `loss_weights` as float32 (0 where the next token is another document's).
    """

    name: ClassVar[str] = "causal"
    families: ClassVar[tuple[str, ...]] = ("decoder",)

    def row_length(self, seq_len: int) -> int:
        """One more than the model reads: the last token is only a target."""
        return seq_len + 1

    def stride(self, seq_len: int) -> int:
        """The token that is only a target here is the first input of the next row."""
        return seq_len

    def example(self, tokens: np.ndarray, segments: np.ndarray, rng: np.random.Generator) -> Features:
        """Inputs are all tokens but the last, targets all but the first."""
        index = np.arange(len(tokens) - 1, dtype=np.int32)
        inside, following = segments[:-1], segments[1:]
        starts = np.concatenate([[True], inside[1:] != inside[:-1]])
        return {
            "tokens": tokens[:-1],
            "targets": tokens[1:],
            "positions": index - np.maximum.accumulate(np.where(starts, index, 0)),
            "segment_ids": inside,
            "loss_weights": ((inside == following) & (inside > 0)).astype(np.float32),
        }

    def loss(self, model: Any, batch: Mapping[str, Any], key: Any, cross_entropy: CrossEntropy) -> Any:
        """Cross-entropy of the next token."""
        hidden = model(batch["tokens"], positions=batch["positions"], segment_ids=batch["segment_ids"], key=key)
        return cross_entropy(model.logits, hidden, batch["targets"], batch["loss_weights"])
