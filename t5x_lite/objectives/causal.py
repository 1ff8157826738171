"""Causal language modelling: predict each token from the tokens before it (Radford et al. 2018, §3.1)."""

from typing import ClassVar

import numpy as np

from t5x_lite.models.config import Family
from t5x_lite.objectives.features import positions_in
from t5x_lite.objectives.model_protocols import Array, Batch, DropoutKey, LanguageModel
from t5x_lite.objectives.objective import ExampleContext, Features, TokenRow
from t5x_lite.objectives.token_prediction import TokenPrediction


class Causal(TokenPrediction):
    """Predict the next token.

    Features, each `[seq_len]`: `tokens`, `targets` (the next token), `positions` (from 0 in each document) and
    `segment_ids` (0 is padding) as int32; `loss_weights` as float32, 0 where the next token is in another document.
    """

    name: ClassVar[str] = "causal"
    families: ClassVar[tuple[Family, ...]] = ("decoder",)
    every_token: ClassVar[bool] = True
    loss_kind: ClassVar[str | None] = "next token"

    def row_length(self, context: ExampleContext) -> int:
        """Return one more than the model reads, because the last token is only a target."""
        return context.seq_len + 1

    def stride(self, context: ExampleContext) -> int:
        """Return the length of the inputs: the last target of a row is the first input of the next row."""
        return context.seq_len

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        segments = row.segments[:-1]
        next_segments = row.segments[1:]
        is_predicted = (segments == next_segments) & (segments > 0)
        return {
            "tokens": row.tokens[:-1],
            "targets": row.tokens[1:],
            "positions": positions_in(segments),
            "segment_ids": segments,
            "loss_weights": is_predicted.astype(np.float32),
        }

    def states(self, model: LanguageModel, batch: Batch, key: DropoutKey) -> Array:
        """Return the states of all tokens. A batch without `segment_ids` has one document in each row."""
        return model(batch["tokens"], positions=batch["positions"], segment_ids=batch.get("segment_ids"), key=key)
