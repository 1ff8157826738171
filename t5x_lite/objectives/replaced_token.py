"""Replaced-token detection: a generator fills masks, the model tells which tokens it replaced (Clark 2020, §2)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from t5x_lite.models.config import Family
from t5x_lite.objectives.masked import Masked, framed_text
from t5x_lite.objectives.objective import ExampleContext, ExampleLengths, Features, Losses, Objective, TokenRow
from t5x_lite.schema import setting


class ReplacedToken(Objective):
    """ELECTRA. Features are those of `masked`, with `unmasked` int32 `[seq_len]`, the text as it was, and
    `detection_weights` float32 `[seq_len]`, 1 for every real token.
    """

    name: ClassVar[str] = "replaced_token"
    families: ClassVar[tuple[Family, ...]] = ("electra",)

    rate: float = setting(0.15, "share of tokens that the generator fills", gt=0, lt=1, source="Large: 0.25, Table 6")
    mask_share: float = setting(0.85, "of these, shown to it as [MASK]; the rest as they are", ge=0, le=1)
    weight: float = setting(50.0, "factor on the discriminator's loss", gt=0, source="Clark et al. 2020, §3.1")

    def _masked(self) -> Masked:
        return Masked(rate=self.rate, mask_share=self.mask_share, random_share=0.0)

    def check_context(self, context: ExampleContext) -> None:
        """The tokenizer must have [CLS], [SEP] and [MASK]."""
        self._masked().check_context(context)

    def row_length(self, context: ExampleContext) -> int:
        """Room between the special tokens."""
        return context.seq_len - 2

    def lengths(self, context: ExampleContext) -> ExampleLengths:
        """What an example costs."""
        return self._masked().lengths(context)

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        """Hide tokens as for a masked language model."""
        framed = framed_text(row, context)
        weights = (framed["segment_ids"] > 0).astype(np.float32)
        hidden = self._masked().hidden(framed, context, rng)
        return {**hidden, "unmasked": framed["tokens"], "detection_weights": weights}

    def loss(self, model: Any, batch: Mapping[str, Any], key: Any, losses: Losses) -> Mapping[str, Any]:
        """The generator's mean over filled tokens, plus `weight` times the discriminator's over all tokens."""
        where = {name: batch[name] for name in ("positions", "segment_ids", "token_types")}
        states = model.generator(batch["tokens"], **where, key=key)
        at = losses.gather(states, batch["target_positions"])
        filled = losses.tokens(model.generator.logits, at, batch["targets"], batch["loss_weights"])
        tokens = model.replaced(batch["unmasked"], batch["target_positions"], batch["loss_weights"], at, key)
        scores = model.discriminator.detection(model.discriminator(tokens, **where, key=key))
        found = losses.binary(scores, tokens != batch["unmasked"], batch["detection_weights"], self.weight)
        return {"loss": filled, "detection": found}
