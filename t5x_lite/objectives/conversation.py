"""Supervised fine-tuning on conversations: predict the assistant's turns (Ouyang et al. 2022, §3.5, SFT)."""

from typing import ClassVar

import numpy as np

from t5x_lite.objectives.causal import Causal
from t5x_lite.objectives.objective import ExampleContext, Features, TokenRow
from t5x_lite.objectives.row_kinds import CONVERSATIONS, RowKind


class Conversation(Causal):
    """Predict the tokens of the assistant's turns, given all before them. Features: see `Causal`.

    Documents are conversations (`data.parts=turns`): parts 1, 3, … of a document are the assistant's.
    `loss_weights` are 0 for all other tokens.
    """

    name: ClassVar[str] = "conversation"
    rows: ClassVar[RowKind] = CONVERSATIONS
    every_token: ClassVar[bool] = False

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        features = super().example(row, context, rng)
        is_assistant = row.parts[1:] % 2 == 1
        return {**features, "loss_weights": features["loss_weights"] * is_assistant}
