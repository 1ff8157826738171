"""Contrastive learning: a text's other view is told from those of the batch's other texts.

Gao et al. 2021 (SimCSE), §3; Giorgi et al. 2021 (DeCLUTR), §3; the loss is that of van den Oord et al. 2018, §2.3.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.models.config import Family, ModelConfig
from t5x_lite.objectives.features import stacked
from t5x_lite.objectives.objective import ExampleContext, ExampleLengths, Features, Losses, Objective, TokenRow
from t5x_lite.objectives.supervised import SMALLEST, framed, pooled
from t5x_lite.schema import setting


class Contrastive(Objective):
    """Tell the two views of a text among those of the batch, by the cosine of their pooled states (`model.head`).

    Features: `tokens`, `token_types`, `positions`, `segment_ids` int32 `[2, seq_len]`, each view as `[CLS] view [SEP]`;
    `loss_weights`, a scalar. A row is one text: `data.packing=none` makes one of each document.

    The views of `halves` share no token: half of the places, drawn at random, go to the one, the others to the other,
    and both keep their order. What a text says is what tells them, so that words are learnt by the company that they
    keep in whole texts.
    """

    name: ClassVar[str] = "contrastive"
    families: ClassVar[tuple[Family, ...]] = ("encoder",)
    one_text: ClassVar[bool] = True

    views: Literal["halves", "dropout"] = setting(
        "halves", "two halves of the tokens, or the whole text twice, told apart by dropout alone (SimCSE)"
    )
    temperature: float = setting(0.1, "what cosines are divided by", gt=0, source="0.05: SimCSE, §3.1")

    def check(self, model: ModelConfig) -> None:
        """The model must pool its states, and for SimCSE it must drop some of them."""
        if model.head is None or model.head.outputs or model.head.pool == "none" or model.outputs:
            raise ValueError(
                "objective contrastive compares pooled states and predicts no tokens: it needs model.outputs=[] and "
                "model.head={outputs: 0, pool: mean} (or first, last, max)"
            )
        if self.views == "dropout" and not model.dropout:
            raise ValueError("objective.contrastive.views=dropout needs model.dropout above 0: its views are the same")

    def check_context(self, context: ExampleContext) -> None:
        """The tokenizer must have [CLS] and [SEP], a view room for a token beside them."""
        framed([np.zeros(0, np.int32)], context)
        if context.seq_len < SMALLEST:
            raise UserError(f"objective contrastive: train.seq_len {context.seq_len} leaves no room in a view")

    def row_length(self, context: ExampleContext) -> int:
        """Tokens whose halves have room beside their frames; or those of one view."""
        return (context.seq_len - 2) * (2 if self.views == "halves" else 1)

    def lengths(self, context: ExampleContext) -> ExampleLengths:
        """What an example costs."""
        return ExampleLengths(context.seq_len, 0, texts=2)

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        """Two views; a text that leaves one of them empty has no weight."""
        text = row.tokens[row.segments > 0]
        text = text[text != context.vocabulary.eos]
        first = rng.permutation(len(text)) < len(text) // 2 if self.views == "halves" else np.ones(len(text), bool)
        second = ~first if self.views == "halves" else first
        views = stacked([framed([text[view]], context) for view in (first, second)])
        return {**views, "loss_weights": np.float32(first.any() and second.any())}  # type: ignore[dict-item]

    def loss(self, model: Any, batch: Mapping[str, Any], key: Any, losses: Losses) -> Mapping[str, Any]:
        """The mean of both directions: the second view among all second ones, the first among all first ones."""
        vectors = pooled(model, batch, key)
        both = vectors.reshape(-1, 2, vectors.shape[-1])
        return {"loss": losses.contrast(both[:, 0], both[:, 1], batch["loss_weights"], self.temperature)}
