"""Permutation language modelling: XLNet (Yang et al. 2019, §2.2 to §2.5, and its code, data_utils.py)."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Int

from t5x_lite.models.config import Family, ModelConfig
from t5x_lite.objectives.features import pad
from t5x_lite.objectives.masking import Groups, words_of_row
from t5x_lite.objectives.model_protocols import Batch, DropoutKey, LossSettings, LossSums, PermutationModel
from t5x_lite.objectives.objective import ExampleContext, ExampleLengths, Features, Objective, TokenRow
from t5x_lite.objectives.row_kinds import SENTENCES, TOKENS, RowKind
from t5x_lite.objectives.sentence_pairs import draw_sentence_pair
from t5x_lite.objectives.special_tokens import (
    build_pair_features,
    build_row_features,
    check_room,
    encoder_template,
    num_encoder_special_tokens,
)
from t5x_lite.schema import Int as IntSetting
from t5x_lite.schema import setting

SEEN_BY_ALL = -1
"""Rank of the tokens that are neither predicted nor special: they come first in the order, together."""


class Permutation(Objective):
    """Predict some tokens in a random order, each from those before it in that order.

    Features: `tokens`, `token_types`, `segment_ids`, `rank` int32 `[seq_len]`; `target_positions` (ascending),
    `targets` int32 and `loss_weights` float32 `[predictions]`, where unused entries have weight 0.

    A row is `text [SEP] [CLS]` or `A [SEP] B [SEP] [CLS]`, or as the tokenizer has it.
    """

    name: ClassVar[str] = "permutation"
    families: ClassVar[tuple[Family, ...]] = ("encoder",)
    reads_two_streams: ClassVar[bool] = True

    k: IntSetting = setting(6, "one of so many tokens is predicted", ge=2, source="§2.3: K; 6 or 7 in §2.3")
    longest_span: IntSetting = setting(5, "words of the longest span that is predicted", ge=1, source="§3.1")
    order: IntSetting | None = setting(
        None,
        "tokens within which the order is random; null: the row",
        unit="tokens",
        ge=1,
        source="perm_size of the code",
    )
    pairs: bool = setting(
        False, "rows of two segments, of which the second follows the first in half of them", source="§2.5"
    )

    @property
    def rows(self) -> RowKind:
        """Pairs of segments need whole sentences, and a second one of another document."""
        return SENTENCES if self.pairs else TOKENS

    def check(self, model: ModelConfig) -> None:
        """Refuse a model without a query stream."""
        if not model.query_stream or set(model.outputs) != {"tokens"}:
            raise ValueError("objective permutation needs model.query_stream=true and model.outputs=[tokens]")

    def check_context(self, context: ExampleContext) -> None:
        """Refuse a tokenizer without the special tokens of an encoder, and a row without room."""
        encoder_template(context.vocabulary, f"objective {self.name}")
        check_room(self.name, self.row_length(context), context)

    def row_length(self, context: ExampleContext) -> int:
        """Return the room between the special tokens."""
        return context.seq_len - num_encoder_special_tokens(context.vocabulary, 2 if self.pairs else 1)

    def example_lengths(self, context: ExampleContext) -> ExampleLengths:
        predictions = self._predictions(context.seq_len)
        return ExampleLengths(context.seq_len, predictions, query_stream=predictions)

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        """Add special tokens to the text, choose spans of it, and draw an order."""
        if not self.pairs:
            return self.permute(build_row_features(row, context), context, rng)
        pair = draw_sentence_pair(
            row, context.vocabulary, room=self.row_length(context), kind="next", short_share=0.0, rng=rng
        )
        return self.permute(build_pair_features(pair.first, pair.second, context), context, rng)

    def permute(self, text: Features, context: ExampleContext, rng: np.random.Generator) -> Features:
        """Choose the predicted tokens of a text with special tokens, and their order."""
        vocabulary = context.vocabulary
        tokens = text["tokens"]
        is_token = text["segment_ids"] > 0
        is_special = vocabulary.special[tokens]
        candidates = np.flatnonzero(is_token & ~is_special)
        budget = min(self._predictions(int(is_token.sum())), len(candidates))
        chosen = self._choose(words_of_row(candidates, tokens, vocabulary), candidates, budget, rng)
        is_ordered = is_special.copy()
        is_ordered[chosen] = True
        predictions = self._predictions(context.seq_len)
        return {
            "tokens": tokens,
            "token_types": text["token_types"],
            "segment_ids": text["segment_ids"],
            "rank": self.draw_ranks(is_ordered, rng),
            "target_positions": pad(chosen, predictions),
            "targets": pad(tokens[chosen], predictions),
            "loss_weights": (np.arange(predictions) < len(chosen)).astype(np.float32),
        }

    def draw_ranks(self, is_ordered: Bool[np.ndarray, "l"], rng: np.random.Generator) -> Int[np.ndarray, "l"]:
        """Return the place of each token in a random order; the tokens that are not in the order come before it.

        With `order`, each stretch of so many tokens comes after the one before it, and all have the same order inside.
        """
        size = min(self.order or len(is_ordered), len(is_ordered))
        stretches, place = np.divmod(np.arange(len(is_ordered)), size)
        rank = stretches * size + rng.permutation(size)[place]
        return np.where(is_ordered, rank, SEEN_BY_ALL).astype(np.int32)

    def _choose(
        self, words: Groups, candidates: Int[np.ndarray, "n"], budget: int, rng: np.random.Generator
    ) -> Int[np.ndarray, "p"]:
        """Return `budget` positions in ascending order: spans of words, then single tokens for what is left.

        A span of n words is at a random place in the next K·n words, which count as many tokens as words have on
        average; the probability of n is proportional to 1/n.
        """
        starts = np.array([word[0] for word in words], np.int64)
        tokens_of_k_words = self.k * len(candidates) / max(len(words), 1)
        sizes = np.arange(1, self.longest_span + 1)
        chosen: set[int] = set()
        cursor = 0
        while len(chosen) < budget:
            size = int(rng.choice(sizes, p=(1 / sizes) / (1 / sizes).sum()))
            room = round(tokens_of_k_words * size)
            before = int(rng.integers(room))
            first = int(np.searchsorted(starts, cursor + before))
            if first + size > len(words):
                break
            span = np.concatenate(words[first : first + size])[: budget - len(chosen)]
            chosen.update(span.tolist())
            cursor = int(span[-1]) + 1 + room - before
        left = np.setdiff1d(candidates, np.array(sorted(chosen), np.int64))
        singles = rng.permutation(left)[: budget - len(chosen)]
        return np.sort(np.concatenate([np.array(sorted(chosen), np.int64), singles]))

    def _predictions(self, tokens: int) -> int:
        """Return how many of so many tokens are predicted."""
        return max(tokens // self.k, 1)

    def loss(
        self, model: PermutationModel, batch: Batch, key: DropoutKey, settings: LossSettings
    ) -> Mapping[str, LossSums]:
        """Return the loss of the predicted tokens."""
        from t5x_lite.models import losses

        states = model.predict_in_order(
            batch["tokens"],
            batch["target_positions"],
            batch["rank"],
            segment_ids=batch["segment_ids"],
            token_types=batch["token_types"],
            key=key,
        )
        weights = batch["loss_weights"]
        return {"loss": losses.token_cross_entropy(model.logits, states, batch["targets"], weights, settings)}
