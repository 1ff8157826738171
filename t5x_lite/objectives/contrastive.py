"""Contrastive learning: identify the other view of a text among the views of the batch's other texts.

Gao et al. 2021 (SimCSE), §3; Giorgi et al. 2021 (DeCLUTR), §3; the loss is that of van den Oord et al. 2018, §2.3.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Bool

from t5x_lite.errors import UserError
from t5x_lite.models.config import Family, ModelConfig
from t5x_lite.objectives.model_protocols import Batch, DropoutKey, LossSettings, LossSums, TaskModel
from t5x_lite.objectives.objective import ExampleContext, ExampleLengths, Features, Objective, TokenRow
from t5x_lite.objectives.special_tokens import build_batch_features, encoder_template, num_encoder_special_tokens
from t5x_lite.objectives.supervised import SHORTEST_ROW, pooled_states
from t5x_lite.schema import setting


class Contrastive(Objective):
    """Identify the two views of a text among those of the batch by the cosine of their pooled states (`model.head`).

    Features: `tokens`, `token_types`, `positions`, `segment_ids` int32 `[2, seq_len]`, each view as `[CLS] view [SEP]`;
    `loss_weights`, a float32 scalar. A row is one text: `data.packing=none` makes one of each document.

    The two views of `halves` share no token: a random half of the tokens is one view, the others are the other view,
    and both keep their order. Because only the content relates the views, the model learns which words occur in the
    same texts.

    With `train.microbatches` the other texts are those of a microbatch: fewer negatives, and another loss.
    """

    name: ClassVar[str] = "contrastive"
    families: ClassVar[tuple[Family, ...]] = ("encoder",)
    predicts_tokens: ClassVar[bool] = False
    one_text: ClassVar[bool] = True
    compares_rows: ClassVar[bool] = True

    views: Literal["halves", "dropout"] = setting(
        "halves", "two halves of the tokens, or the whole text twice, which differs only by dropout (SimCSE)"
    )
    temperature: float = setting(0.1, "divisor of the cosines", gt=0, source="0.05: SimCSE, §3.1")

    def check(self, model: ModelConfig) -> None:
        """Refuse a model that does not pool its states, and for SimCSE one without dropout."""
        if not model.gives_vectors or model.outputs:
            raise ValueError(
                "objective contrastive compares pooled states and predicts no tokens: it needs model.outputs=[] and "
                "model.head={outputs: 0, pool: mean} (or first, last, max)"
            )
        if self.views == "dropout" and not model.dropout:
            raise ValueError("objective.contrastive.views=dropout needs model.dropout above 0: its views are the same")

    def check_context(self, context: ExampleContext) -> None:
        """Refuse a tokenizer without [CLS] and [SEP], and a row without room for tokens between them."""
        encoder_template(context.vocabulary, f"objective {self.name}")
        if context.seq_len < SHORTEST_ROW:
            raise UserError(f"objective contrastive: train.seq_len {context.seq_len} leaves no room in a view")

    def row_length(self, context: ExampleContext) -> int:
        """Return the largest number of tokens in all views, without their special tokens."""
        view_length = context.seq_len - num_encoder_special_tokens(context.vocabulary, texts=1)
        if self.views == "halves":
            return 2 * view_length
        return view_length

    def example_lengths(self, context: ExampleContext) -> ExampleLengths:
        return ExampleLengths(context.seq_len, 0, texts=2)

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        """Make the two views of a text. The weight is 0 if a view is empty."""
        text = row.tokens[row.segments > 0]
        text = text[text != context.vocabulary.eos]
        in_first, in_second = self._draw_views(len(text), rng)
        is_complete = in_first.any() and in_second.any()
        return {
            **build_batch_features([[text[in_first]], [text[in_second]]], context),
            "loss_weights": np.array(is_complete, np.float32),
        }

    def loss(self, model: TaskModel, batch: Batch, key: DropoutKey, settings: LossSettings) -> Mapping[str, LossSums]:
        """Return the loss of the second view among all second views and of the first among all first, their mean."""
        from t5x_lite.models import losses

        vectors = pooled_states(model, batch, key)
        views = vectors.reshape(-1, 2, vectors.shape[-1])
        return {"loss": losses.info_nce(views[:, 0], views[:, 1], batch["loss_weights"], self.temperature)}

    def _draw_views(
        self, length: int, rng: np.random.Generator
    ) -> tuple[Bool[np.ndarray, "{length}"], Bool[np.ndarray, "{length}"]]:
        """Mark the tokens of the first and of the second view."""
        if self.views == "dropout":
            whole_text = np.ones(length, bool)
            return whole_text, whole_text
        in_first = rng.permutation(length) < length // 2
        return in_first, ~in_first
