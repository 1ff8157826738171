"""Masked language modelling, with or without sentence pairs: BERT, RoBERTa, ALBERT, SpanBERT.

Devlin et al. 2019, §3.1 and appendix A.1, and BERT's create_pretraining_data; Liu et al. 2019, §4; Lan et al. 2020,
§3.1; Joshi et al. 2020, §3.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Int

from t5x_lite.models.config import Family, ModelConfig
from t5x_lite.objectives.features import pad
from t5x_lite.objectives.masking import (
    Groups,
    boundary_features,
    choose_spans,
    choose_tokens,
    choose_words,
    words_of_row,
)
from t5x_lite.objectives.model_protocols import (
    Array,
    Batch,
    DropoutKey,
    LossSettings,
    LossSums,
    MaskedLanguageModel,
)
from t5x_lite.objectives.objective import ExampleContext, ExampleLengths, Features, TokenRow, Vocabulary
from t5x_lite.objectives.row_kinds import SENTENCES, TOKENS, RowKind
from t5x_lite.objectives.sentence_pairs import draw_sentence_pair
from t5x_lite.objectives.special_tokens import (
    build_pair_features,
    build_row_features,
    check_room,
    encoder_template,
    num_encoder_special_tokens,
)
from t5x_lite.objectives.token_prediction import TokenPrediction
from t5x_lite.schema import Int as IntSetting
from t5x_lite.schema import setting

MASK = ("[MASK]", "<mask>")
"""Names of the token that is shown in the place of a masked one, in BERT's and in RoBERTa's tokenizers."""


class Masked(TokenPrediction):
    """Predict the masked tokens.

    Features: `tokens`, `token_types`, `positions`, `segment_ids` int32 `[seq_len]`; `target_positions` (ascending),
    `targets` int32 and `loss_weights` float32 `[predictions]`, where unused entries have weight 0. With `sentences`
    also `sentence_targets` int32 (1 if the second sentence does not follow the first) and `sentence_weights` float32,
    scalars. With `boundary` also `span_left`, `span_right`, `span_places` int32 and `span_weights` float32
    `[predictions]`.

    A row is `[CLS] text [SEP]`, or `[CLS] A [SEP] B [SEP]` with token types 0 and 1. RoBERTa's full sentences are
    `data.packing=sentences` with `data.separate_documents=false`.
    """

    name: ClassVar[str] = "masked"
    families: ClassVar[tuple[Family, ...]] = ("encoder",)
    loss_kind: ClassVar[str | None] = "masked tokens"

    rate: float = setting(0.15, "share of tokens to predict", gt=0, lt=1, source="Devlin et al. 2019, §3.1")
    mask_share: float = setting(0.8, "share of these that is shown as [MASK]", ge=0, le=1)
    random_share: float = setting(
        0.1, "share of these that is shown as another token; the remaining ones are shown as they are", ge=0, le=1
    )
    replacement: Literal["uniform", "frequency"] = setting(
        "uniform", "draw other tokens uniformly from the vocabulary, or by their frequency in the training text"
    )
    spans: Literal["token", "word", "geometric"] = setting(
        "token", "mask single tokens, whole words, or spans of words of geometric length (SpanBERT)"
    )
    boundary: bool = setting(
        False, "also predict the tokens of a span from the states next to it", source="Joshi et al. 2020, §3.2"
    )
    static: IntSetting = setting(
        0, "epochs after which the same masks repeat; 0 draws new ones for ever", ge=0, source="RoBERTa, §4.1"
    )
    sentences: Literal["none", "next", "order"] = setting(
        "none", "predict for a pair of sentences if the second follows (BERT), or if they were swapped (ALBERT)"
    )
    short_share: float = setting(0.1, "share of pairs of random shorter length", ge=0, le=1, source="BERT's code")
    language: IntSetting = setting(
        0, "token type of all tokens of a text, the number of its language (XLM)", ge=0, source="Conneau & Lample 2019"
    )

    @property
    def rows(self) -> RowKind:
        """Sentence pairs need whole sentences, and a second sentence of another document."""
        return TOKENS if self.sentences == "none" else SENTENCES

    @property
    def needs_frequency(self) -> bool:
        return self.replacement == "frequency"

    @property
    def static_epochs(self) -> int:
        """`static`; the data of BERT had ten sets of masks."""
        return self.static

    @property
    def term_weights(self) -> Mapping[str, str]:
        weights = {"loss": "loss_weights"}
        if self.sentences != "none":
            weights["sentence"] = "sentence_weights"
        if self.boundary:
            weights["span"] = "span_weights"
        return weights

    def check(self, model: ModelConfig) -> None:
        """Refuse a model whose outputs are not those that the objective trains."""
        trained = {"tokens"}
        if self.sentences != "none":
            trained.add("sentence")
        if self.boundary:
            trained.add("span")
        if model.family == "encoder" and set(model.outputs) != trained:
            raise ValueError(
                f"objective masked with sentences={self.sentences}, boundary={self.boundary} trains the outputs "
                f"{sorted(trained)}, model.outputs are {sorted(model.outputs)}"
            )
        if self.sentences != "none" and model.family == "encoder" and model.token_types != 2:
            raise ValueError(f"sentence pairs need model.token_types=2, found {model.token_types}")
        if self.language:
            check_languages(self.name, (self.language,), model)
            if self.sentences != "none":
                raise ValueError("objective.masked: token types are the sentences of a pair or languages, not both")
        if self.boundary and self.spans != "geometric":
            raise ValueError("objective.masked.boundary needs spans=geometric")
        if self.mask_share + self.random_share > 1:
            raise ValueError("objective.masked: mask_share and random_share are more than 1 together")

    def check_context(self, context: ExampleContext) -> None:
        """Refuse a tokenizer without [CLS], [SEP] and [MASK] (or <s>, </s>, <mask>), and a row without room."""
        encoder_template(context.vocabulary, f"objective {self.name}")
        self._mask_token(context.vocabulary)
        check_room(self.name, self.row_length(context), context)

    def row_length(self, context: ExampleContext) -> int:
        """Return the room between the special tokens."""
        texts = 1 if self.sentences == "none" else 2
        return context.seq_len - num_encoder_special_tokens(context.vocabulary, texts)

    def example_lengths(self, context: ExampleContext) -> ExampleLengths:
        return ExampleLengths(context.seq_len, self._predictions(context))

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        """Add special tokens to the text, then mask some of its tokens."""
        if self.sentences == "none":
            return self.mask(build_row_features(row, context, self.language), context, rng)
        pair = draw_sentence_pair(
            row,
            context.vocabulary,
            room=self.row_length(context),
            kind=self.sentences,
            short_share=self.short_share,
            rng=rng,
        )
        text = build_pair_features(pair.first, pair.second, context)
        return {
            **self.mask(text, context, rng),
            "sentence_targets": np.array(pair.label, np.int32),
            "sentence_weights": np.array(text["segment_ids"][0] > 0, np.float32),
        }

    def mask(self, text: Features, context: ExampleContext, rng: np.random.Generator) -> Features:
        """Mask some tokens of a text with special tokens, and add the features of the targets."""
        vocabulary = context.vocabulary
        is_token = text["segment_ids"] > 0
        budget = min(self._predictions(context), max(round(self.rate * int(is_token.sum())), 1))
        candidates = np.flatnonzero(is_token & ~vocabulary.special[text["tokens"]])
        groups = self._choose_groups(candidates, text["tokens"], budget, vocabulary, rng)
        positions = np.concatenate([np.zeros(0, np.int64), *groups])
        originals = text["tokens"][positions]

        tokens = text["tokens"].copy()
        if self.spans == "geometric":
            for group in groups:
                tokens[group] = self._replace(tokens[group], vocabulary, rng, together=True)
        elif len(positions):
            tokens[positions] = self._replace(originals, vocabulary, rng, together=False)

        order = np.argsort(positions)
        predictions = self._predictions(context)
        features = {
            **text,
            "tokens": tokens,
            "target_positions": pad(positions[order], predictions),
            "targets": pad(originals[order], predictions),
            "loss_weights": (np.arange(predictions) < len(positions)).astype(np.float32),
        }
        if self.boundary:
            features.update(boundary_features(groups, predictions))
        return features

    def states(self, model: MaskedLanguageModel, batch: Batch, key: DropoutKey) -> Array:
        """Return the states of all tokens."""
        return model(
            batch["tokens"],
            positions=batch["positions"],
            segment_ids=batch["segment_ids"],
            token_types=batch["token_types"],
            key=key,
        )

    def predicting_states(self, states: Array, batch: Batch) -> Array:
        """Return the states of the masked tokens."""
        from t5x_lite.models.gather_positions import gather_positions

        return gather_positions(states, batch["target_positions"])

    def loss_from_states(
        self, model: MaskedLanguageModel, states: Array, batch: Batch, settings: LossSettings
    ) -> Mapping[str, LossSums]:
        """Return the losses of the masked tokens, of the sentence pairs, and of the span-boundary output."""
        from t5x_lite.models import losses
        from t5x_lite.models.gather_positions import gather_positions

        targets = batch["targets"]
        masked_states = self.predicting_states(states, batch)
        terms = {
            "loss": losses.token_cross_entropy(model.logits, masked_states, targets, batch["loss_weights"], settings),
        }
        if self.sentences != "none":
            assert model.sentence is not None
            terms["sentence"] = losses.class_cross_entropy(
                model.sentence(states), batch["sentence_targets"], batch["sentence_weights"]
            )
        if self.boundary:
            assert model.span is not None
            left = gather_positions(states, batch["span_left"])
            right = gather_positions(states, batch["span_right"])
            span_states = model.span(left, right, batch["span_places"])
            terms["span"] = losses.token_cross_entropy(
                model.span_logits, span_states, targets, batch["span_weights"], settings
            )
        return terms

    def _predictions(self, context: ExampleContext) -> int:
        """Return the number of masked tokens in a full row, BERT's max_predictions_per_seq."""
        return max(int(np.ceil(self.rate * context.seq_len)), 1)

    def _mask_token(self, vocabulary: Vocabulary) -> int:
        return vocabulary.require_token(f"objective {self.name}", *MASK)

    def _choose_groups(
        self,
        candidates: Int[np.ndarray, "n"],
        tokens: Int[np.ndarray, "l"],
        budget: int,
        vocabulary: Vocabulary,
        rng: np.random.Generator,
    ) -> Groups:
        """Choose at most `budget` of the candidate positions, in groups that are masked together."""
        if self.spans == "token":
            return choose_tokens(candidates, budget, rng)
        words = words_of_row(candidates, tokens, vocabulary)
        if self.spans == "word":
            return choose_words(words, budget, rng)
        return choose_spans(words, budget, rng)

    def _replace(
        self, originals: Int[np.ndarray, "n"], vocabulary: Vocabulary, rng: np.random.Generator, *, together: bool
    ) -> Int[np.ndarray, "n"]:
        """Return the tokens that are shown: by default 80 % [MASK], 10 % another token, 10 % the original.

        With `together` one draw decides for all of them.
        """
        draws = rng.random(1 if together else len(originals))
        others = self._draw_tokens(len(originals), vocabulary, rng)
        unmasked = np.where(draws < self.mask_share + self.random_share, others, originals)
        return np.where(draws < self.mask_share, self._mask_token(vocabulary), unmasked)

    def _draw_tokens(self, count: int, vocabulary: Vocabulary, rng: np.random.Generator) -> Int[np.ndarray, "{count}"]:
        if self.replacement == "uniform":
            return rng.integers(vocabulary.size, size=count)
        assert vocabulary.frequency is not None
        cumulative = np.cumsum(vocabulary.frequency)
        return np.searchsorted(cumulative, rng.random(count) * (1 - 1e-12), side="right")


def check_languages(objective: str, languages: Sequence[int], model: ModelConfig) -> None:
    """Refuse a model without a token type for each of these languages.

    Raises:
        ValueError: with the number of token types that it needs.
    """
    needed = max(languages) + 1
    if model.family == "encoder" and model.token_types < needed:
        raise ValueError(
            f"objective {objective} needs model.token_types of at least {needed}, one for each language, "
            f"found {model.token_types}"
        )
