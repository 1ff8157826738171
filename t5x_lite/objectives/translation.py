"""Translation language modelling: masked tokens of a sentence and of its translation (Conneau & Lample 2019, §3.3)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, TypeAlias

import numpy as np
from pydantic import Field, Strict

from t5x_lite.models.config import Family, ModelConfig
from t5x_lite.objectives.features import segments_of
from t5x_lite.objectives.masked import Masked, check_languages
from t5x_lite.objectives.model_protocols import Batch, DropoutKey, LossSettings, LossSums, MaskedLanguageModel
from t5x_lite.objectives.objective import ExampleContext, ExampleLengths, Features, Objective, TokenRow
from t5x_lite.objectives.row_kinds import SINGLE_PAIRS, RowKind
from t5x_lite.objectives.special_tokens import build_pair_features, num_encoder_special_tokens
from t5x_lite.schema import Int, setting

Language: TypeAlias = Annotated[Int, Field(ge=0)]
"""Number of a language, from 0."""


class Translation(Objective):
    """Mask tokens in both sentences of a pair (`data.parts=fields`) in one row. Features: see `Masked`.

    The languages are token types; positions of the translation begin from 0 again. Pairs that are too long are cut
    evenly.
    """

    name: ClassVar[str] = "translation"
    families: ClassVar[tuple[Family, ...]] = ("encoder",)
    rows: ClassVar[RowKind] = SINGLE_PAIRS
    loss_kind: ClassVar[str | None] = Masked.loss_kind

    rate: float = setting(0.15, "share of tokens to predict", gt=0, lt=1, source="Conneau & Lample 2019, §3.2")
    mask_share: float = setting(0.8, "share of these that is shown as [MASK]", ge=0, le=1)
    random_share: float = setting(0.1, "share of these that is shown as another token", ge=0, le=1)
    languages: Annotated[tuple[Language, Language], Strict(False)] = setting(
        (0, 1), "token types of the two texts, the numbers of their languages"
    )

    def check(self, model: ModelConfig) -> None:
        """Refuse a model without a token type for each of the languages."""
        check_languages(self.name, self.languages, model)
        self._masked().check(model)

    def check_context(self, context: ExampleContext) -> None:
        """Refuse a tokenizer without [CLS], [SEP] and [MASK]."""
        self._masked().check_context(context)

    def row_length(self, context: ExampleContext) -> int:
        """Return the room between the special tokens."""
        return context.seq_len - num_encoder_special_tokens(context.vocabulary, texts=2)

    def example_lengths(self, context: ExampleContext) -> ExampleLengths:
        return self._masked().example_lengths(context)

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        """Make an example of the first document of the row."""
        first = np.zeros(0, np.int32)
        second = np.zeros(0, np.int32)
        segments = segments_of(row.segments)
        if segments:
            tokens = row.tokens[segments[0]]
            parts = row.parts[segments[0]]
            is_plain = ~context.vocabulary.special[tokens]
            first = tokens[is_plain & (parts == 0)]
            second = tokens[is_plain & (parts == 1)]
        room = self.row_length(context)
        first = first[: max(room // 2, room - len(second))]
        second = second[: room - len(first)]
        features = build_pair_features(first, second, context, restart_positions=True)
        is_token = features["segment_ids"] > 0
        token_types = np.array(self.languages, np.int32)[features["token_types"]] * is_token
        return self._masked().mask({**features, "token_types": token_types}, context, rng)

    def loss(
        self, model: MaskedLanguageModel, batch: Batch, key: DropoutKey, settings: LossSettings
    ) -> Mapping[str, LossSums]:
        """Return the cross-entropy of the masked tokens."""
        return self._masked().loss(model, batch, key, settings)

    def _masked(self) -> Masked:
        return Masked(rate=self.rate, mask_share=self.mask_share, random_share=self.random_share)
