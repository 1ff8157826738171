"""Causal language modelling: predict each token from those before it in its document (Radford et al. 2018, §3.1)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from t5x_lite.models.config import Family
from t5x_lite.objectives.features import positions_in
from t5x_lite.objectives.objective import ExampleContext, Features, Losses, Objective, TokenRow


class Causal(Objective):
    """Next-token prediction.

    Features, each `[batch, seq_len]`: `tokens`, `targets` (the next token), `positions` (restart in each document),
    `segment_ids` (0 is padding) as int32, and `loss_weights` as float32 (0 where the next token is another document's).
    """

    name: ClassVar[str] = "causal"
    families: ClassVar[tuple[Family, ...]] = ("decoder",)
    every_token: ClassVar[bool] = True

    def row_length(self, context: ExampleContext) -> int:
        """One more than the model reads: the last token is only a target."""
        return context.seq_len + 1

    def stride(self, context: ExampleContext) -> int:
        """The token that is only a target here is the first input of the next row."""
        return context.seq_len

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        """Inputs are all tokens but the last, targets all but the first."""
        inside, following = row.segments[:-1], row.segments[1:]
        return {
            "tokens": row.tokens[:-1],
            "targets": row.tokens[1:],
            "positions": positions_in(inside),
            "segment_ids": inside,
            "loss_weights": ((inside == following) & (inside > 0)).astype(np.float32),
        }

    def loss(self, model: Any, batch: Mapping[str, Any], key: Any, losses: Losses) -> Mapping[str, Any]:
        """Cross-entropy of the next token."""
        states = model(batch["tokens"], positions=batch["positions"], segment_ids=batch.get("segment_ids"), key=key)
        return {"loss": losses.tokens(model.logits, states, batch["targets"], batch["loss_weights"])}
