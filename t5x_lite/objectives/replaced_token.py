"""Replaced-token detection: a generator fills masks, the model detects the replaced tokens (Clark et al. 2020, §2)."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from t5x_lite.models.config import Family
from t5x_lite.objectives.masked import Masked
from t5x_lite.objectives.model_protocols import Batch, DropoutKey, ElectraModel, LossSettings, LossSums
from t5x_lite.objectives.objective import ExampleContext, ExampleLengths, Features, Objective, TokenRow
from t5x_lite.objectives.special_tokens import build_row_features, num_encoder_special_tokens
from t5x_lite.schema import setting


class ReplacedToken(Objective):
    """Detect the tokens that a small generator has replaced (ELECTRA).

    Features: those of `Masked`; `unmasked` int32 `[seq_len]`, the original tokens; and `detection_weights` float32
    `[seq_len]`, 0 in the padding.
    """

    name: ClassVar[str] = "replaced_token"
    families: ClassVar[tuple[Family, ...]] = ("electra",)

    rate: float = setting(0.15, "share of tokens that the generator fills", gt=0, lt=1, source="Large: 0.25, Table 6")
    mask_share: float = setting(
        0.85, "share of these that it sees as [MASK]; it sees the remaining ones as they are", ge=0, le=1
    )
    weight: float = setting(50.0, "factor on the discriminator's loss", gt=0, source="Clark et al. 2020, §3.1")

    @property
    def term_weights(self) -> Mapping[str, str]:
        return {"loss": "loss_weights", "detection": "detection_weights"}

    def check_context(self, context: ExampleContext) -> None:
        """Refuse a tokenizer without [CLS], [SEP] and [MASK]."""
        self._masked().check_context(context)

    def row_length(self, context: ExampleContext) -> int:
        """Return the room between the special tokens."""
        return context.seq_len - num_encoder_special_tokens(context.vocabulary, texts=1)

    def example_lengths(self, context: ExampleContext) -> ExampleLengths:
        return self._masked().example_lengths(context)

    def example(self, row: TokenRow, context: ExampleContext, rng: np.random.Generator) -> Features:
        """Mask tokens as for a masked language model."""
        features = build_row_features(row, context)
        return {
            **self._masked().mask(features, context, rng),
            "unmasked": features["tokens"],
            "detection_weights": (features["segment_ids"] > 0).astype(np.float32),
        }

    def loss(
        self, model: ElectraModel, batch: Batch, key: DropoutKey, settings: LossSettings
    ) -> Mapping[str, LossSums]:
        """Return the generator's loss of filled tokens and the discriminator's loss of all tokens, times `weight`."""
        import jax

        from t5x_lite.models import losses
        from t5x_lite.models.gather_positions import gather_positions

        generator_key = draw_key = discriminator_key = None
        if key is not None:
            generator_key, draw_key, discriminator_key = jax.random.split(key, 3)
        where = {name: batch[name] for name in ("positions", "segment_ids", "token_types")}
        originals = batch["unmasked"]
        positions = batch["target_positions"]
        fill_weights = batch["loss_weights"]

        states = model.generator(batch["tokens"], **where, key=generator_key)
        masked_states = gather_positions(states, positions)
        generator_loss = losses.token_cross_entropy(
            model.generator.logits, masked_states, batch["targets"], fill_weights, settings
        )

        tokens = model.replace_tokens(originals, positions, fill_weights, masked_states, draw_key)
        states = model.discriminator(tokens, **where, key=discriminator_key)
        scores = model.discriminator.detection(states, batch["segment_ids"])
        detection_loss = losses.binary_cross_entropy(scores, tokens != originals, batch["detection_weights"])
        return {"loss": generator_loss, "detection": detection_loss.scaled(self.weight)}

    def _masked(self) -> Masked:
        return Masked(rate=self.rate, mask_share=self.mask_share, random_share=0.0)
