"""Bidirectional language modelling: the next token from those before it, the last from those after it.

Peters et al. 2018, §3.1: the two directions share the vectors of tokens and the softmax.
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from t5x_lite.models.config import Family, ModelConfig
from t5x_lite.models.feedforward.config import NoFeedForward
from t5x_lite.models.mixers.recurrent import Recurrent
from t5x_lite.models.normalization import NoNorm
from t5x_lite.objectives.features import segments_of, token_features
from t5x_lite.objectives.model_protocols import Batch, BidirectionalModel, DropoutKey, LossSettings, LossSums
from t5x_lite.objectives.objective import ExampleContext, ExampleLengths, Features, Objective, TokenRow
from t5x_lite.objectives.row_kinds import DOCUMENTS, RowKind
from t5x_lite.objectives.special_tokens import encoder_template

NUM_SPECIAL_TOKENS = 2


class BidirectionalLM(Objective):
    """Predict each token in both directions; the loss is the mean of both.

    Features: `tokens`, `positions` and `segment_ids` int32 `[seq_len]`, each document as `<s> text </s>`; `targets`
    int32 and `loss_weights` float32 `[2·seq_len]`: first the next token of each, then the token before each, with
    weight 0 where that is in another document.

    The first half of a state must depend on the tokens up to its own alone, the second half on those from its own on.
    """

    name: ClassVar[str] = "bidirectional_lm"
    families: ClassVar[tuple[Family, ...]] = ("encoder",)
    rows: ClassVar[RowKind] = DOCUMENTS

    def check(self, model: ModelConfig) -> None:
        """Refuse a model whose states would depend on the tokens that they predict."""
        if set(model.outputs) != {"neighbours"}:
            raise ValueError(f"objective {self.name} trains model.outputs=[neighbours], not {list(model.outputs)}")
        if model.output_transform:
            raise ValueError(f"objective {self.name} has no place for output_transform: set it to false")
        for layer in (*model.first, *model.pattern):
            if not isinstance(layer.mixer, Recurrent) or not layer.mixer.separate_directions:
                raise ValueError(f"objective {self.name} needs layers whose mixer has separate_directions: true")
            if not isinstance(model.feedforward_of(layer), NoFeedForward):
                raise ValueError(f"objective {self.name} needs feedforward: none, which would join the directions")
        if not isinstance(model.norm, NoNorm):
            raise ValueError(f"objective {self.name} needs norm: none; the norm of a state would join the directions")
        if model.token_copies != 2 or 2 * model.embedding != model.embed:
            raise ValueError(
                f"objective {self.name} needs a copy of the token vector for each direction: token_copies: 2 and "
                f"embedding: {model.embed // 2}, found {model.token_copies} and {model.embedding}"
            )

    def check_context(self, context: ExampleContext) -> None:
        """Refuse a tokenizer without <s> and </s>."""
        encoder_template(context.vocabulary, f"objective {self.name}")

    def row_length(self, context: ExampleContext) -> int:
        """Return the room between the special tokens."""
        return context.seq_len - NUM_SPECIAL_TOKENS

    def packed_sizes(self, lengths: np.ndarray, context: ExampleContext) -> np.ndarray:
        """Return the length of each document with its special tokens."""
        return lengths.sum(1, keepdims=True) + NUM_SPECIAL_TOKENS

    def row_capacity(self, context: ExampleContext) -> tuple[int, ...]:
        return (context.seq_len,)

    def example_lengths(self, context: ExampleContext) -> ExampleLengths:
        return ExampleLengths(context.seq_len, 2 * context.seq_len)

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        template = encoder_template(context.vocabulary, f"objective {self.name}")
        texts = [np.zeros(0, np.int32)]
        for segment in segments_of(row.segments):
            texts.append(template.tokens([row.tokens[segment]]))
        numbers = np.repeat(np.arange(len(texts), dtype=np.int32), [len(text) for text in texts])
        features = token_features(np.concatenate(texts), numbers, context.seq_len)
        tokens = features["tokens"]
        segments = features["segment_ids"]
        has_next = (segments == np.append(segments[1:], 0)) & (segments > 0)
        has_last = (segments == np.append(0, segments[:-1])) & (segments > 0)
        return {
            **features,
            "targets": np.concatenate([np.roll(tokens, -1), np.roll(tokens, 1)]),
            "loss_weights": np.concatenate([has_next, has_last]).astype(np.float32),
        }

    def loss(
        self, model: BidirectionalModel, batch: Batch, key: DropoutKey, settings: LossSettings
    ) -> Mapping[str, LossSums]:
        """Return the cross-entropy of the tokens after and before each."""
        import jax.numpy as jnp

        from t5x_lite.models import losses

        states = model(batch["tokens"], positions=batch["positions"], segment_ids=batch["segment_ids"], key=key)
        directions = jnp.concatenate(jnp.split(states, 2, axis=-1), axis=1)
        weights = batch["loss_weights"]
        return {
            "loss": losses.token_cross_entropy(model.neighbour_logits, directions, batch["targets"], weights, settings),
        }
