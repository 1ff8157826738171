"""Translation language modelling: hidden tokens of a sentence and of its translation (Conneau & Lample 2019, §3.3)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from t5x_lite.models.config import Family, ModelConfig
from t5x_lite.objectives.features import segments_of
from t5x_lite.objectives.masked import Masked, framed_pair
from t5x_lite.objectives.objective import ExampleContext, ExampleLengths, Features, Losses, Objective, RowKind, TokenRow
from t5x_lite.schema import setting


class Translation(Objective):
    """Both sentences of a pair (`data.parts=fields`) in one row, tokens hidden in both. Features: see `masked`.

    The languages are the token types; positions of the translation start again from 0. Longer pairs are cut evenly.
    """

    name: ClassVar[str] = "translation"
    families: ClassVar[tuple[Family, ...]] = ("encoder",)
    rows: ClassVar[RowKind] = "pairs"
    packings: ClassVar[tuple[str, ...]] = ("none",)

    rate: float = setting(0.15, "share of tokens to tell", gt=0, lt=1, source="Conneau & Lample 2019, §3.2")
    mask_share: float = setting(0.8, "of these, shown as [MASK]", ge=0, le=1)
    random_share: float = setting(0.1, "of these, shown as another token", ge=0, le=1)

    def _masked(self) -> Masked:
        return Masked(rate=self.rate, mask_share=self.mask_share, random_share=self.random_share)

    def check(self, model: ModelConfig) -> None:
        """The languages are token types."""
        if model.family == "encoder" and model.token_types != 2:
            raise ValueError(f"objective translation needs model.token_types=2, found {model.token_types}")
        self._masked().check(model)

    def check_context(self, context: ExampleContext) -> None:
        """The tokenizer must have [CLS], [SEP] and [MASK]."""
        self._masked().check_context(context)

    def row_length(self, context: ExampleContext) -> int:
        """Room between the special tokens."""
        return context.seq_len - 3

    def lengths(self, context: ExampleContext) -> ExampleLengths:
        """What an example costs."""
        return self._masked().lengths(context)

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        """The first document of the row."""
        texts = [np.zeros(0, np.int32)] * 2
        for part in segments_of(row.segments)[:1]:
            tokens, parts = row.tokens[part], row.parts[part]
            plain = ~context.vocabulary.special[tokens]
            texts = [tokens[plain & (parts == side)] for side in (0, 1)]
        room = self.row_length(context)
        first = min(len(texts[0]), max(room // 2, room - len(texts[1])))
        framed = framed_pair([texts[0][:first], texts[1][: room - first]], context, restart=True)
        return self._masked().hidden(framed, context, rng)

    def loss(self, model: Any, batch: Mapping[str, Any], key: Any, losses: Losses) -> Mapping[str, Any]:
        """Cross-entropy of the hidden tokens."""
        return self._masked().loss(model, batch, key, losses)
