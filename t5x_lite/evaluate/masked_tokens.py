"""Rows in which a model predicts a masked token: a [MASK] in an encoder, a sentinel in an encoder_decoder.

An encoder with a query stream predicts tokens that it does not see.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from t5x_lite.config import RunConfig
from t5x_lite.errors import UserError
from t5x_lite.models.gather_positions import gather_positions
from t5x_lite.objectives.masked import MASK
from t5x_lite.objectives.model_protocols import ElectraModel, LanguageModel, PermutationModel
from t5x_lite.objectives.objective import ExampleContext
from t5x_lite.objectives.permutation import SEEN_BY_ALL
from t5x_lite.objectives.special_tokens import SpecialTokensTemplate, encoder_template, virtual_tokens
from t5x_lite.parallel.batched_function import Features

USER = "pseudo-log-likelihood"
"""The user of the special tokens, for error messages."""


@dataclass(frozen=True)
class TokenMasker(ABC):
    """Masks tokens of a text, and reads the prediction of the first of them.

    Attributes:
        template: the special tokens around the text.
    """

    template: SpecialTokensTemplate

    @property
    @abstractmethod
    def mask_token(self) -> int:
        """Id of the token that stands in a text where tokens are masked."""

    @abstractmethod
    def features(self, tokens: Int[np.ndarray, "l"], masked: slice) -> Features:
        """Return the row of a text whose tokens `masked` the model does not see.

        Returns:
            `tokens` and `segment_ids`, int32 `[row_length]`, and `position` of the first masked token, `[1]`.
        """

    @abstractmethod
    def logits(self, model: LanguageModel | ElectraModel, batch: dict[str, Array]) -> Float[Array, "b 1 v"]:
        """Return the logits of the first masked token of each row."""


@dataclass(frozen=True)
class MaskedTokens(TokenMasker):
    """A [MASK] replaces each masked token. ELECTRA's generator predicts them.

    Attributes:
        mask: the id of [MASK].
    """

    mask: int

    @property
    def mask_token(self) -> int:
        return self.mask

    def features(self, tokens: Int[np.ndarray, "l"], masked: slice) -> Features:
        input_tokens = tokens.copy()
        input_tokens[masked] = self.mask
        row = self.template.tokens([input_tokens])
        position = len(self.template.start) + masked.start
        return {"tokens": row, "segment_ids": np.ones_like(row), "position": np.array([position], np.int32)}

    def logits(self, model: LanguageModel | ElectraModel, batch: dict[str, Array]) -> Float[Array, "b 1 v"]:
        encoder = model.generator if isinstance(model, ElectraModel) else model
        states = encoder(batch["tokens"], key=None, segment_ids=batch["segment_ids"])
        return encoder.logits(gather_positions(states, batch["position"][:, :1]))


@dataclass(frozen=True)
class PermutedTokens(TokenMasker):
    """Masked tokens come last in an order of factorisation, and a query stream predicts them: nothing replaces them."""

    @property
    def mask_token(self) -> int:
        """Return any token: the query stream does not see it."""
        return self.template.end

    def features(self, tokens: Int[np.ndarray, "l"], masked: slice) -> Features:
        """Return the row with `rank`: 0 for the first masked token, 1 for the others, which come after it."""
        row = self.template.tokens([tokens])
        types = self.template.token_types([tokens])
        before = len(self.template.start)
        first = before + masked.start
        rank = np.full_like(row, SEEN_BY_ALL)
        rank[first : before + masked.stop] = 1
        rank[first] = 0
        position = np.array([first], np.int32)
        return {"tokens": row, "segment_ids": np.ones_like(row), "position": position, "rank": rank, "types": types}

    def logits(self, model: LanguageModel | ElectraModel, batch: dict[str, Array]) -> Float[Array, "b 1 v"]:
        assert isinstance(model, PermutationModel)
        states = model.predict_in_order(
            batch["tokens"],
            batch["position"][:, :1],
            batch["rank"],
            segment_ids=batch["segment_ids"],
            token_types=batch["types"],
        )
        return model.logits(states)


@dataclass(frozen=True)
class InfilledTokens(TokenMasker):
    """The first sentinel replaces all masked tokens; the decoder predicts what follows this sentinel.

    Attributes:
        sentinel: the id of the first sentinel.
        start_token: the token that the decoder begins with.
    """

    sentinel: int
    start_token: int = 0

    @property
    def mask_token(self) -> int:
        return self.sentinel

    def features(self, tokens: Int[np.ndarray, "l"], masked: slice) -> Features:
        """See `TokenMasker`. The position is that in the decoder."""
        input_tokens = np.concatenate([tokens[: masked.start], [self.sentinel], tokens[masked.stop :]])
        row = self.template.tokens([input_tokens])
        return {"tokens": row, "segment_ids": np.ones_like(row), "position": np.array([1], np.int32)}

    def logits(self, model: LanguageModel | ElectraModel, batch: dict[str, Array]) -> Float[Array, "b 1 v"]:
        assert isinstance(model, LanguageModel)
        tokens = batch["tokens"]
        start = jnp.array([self.start_token, self.sentinel], tokens.dtype)
        decoder_tokens = jnp.broadcast_to(start, (tokens.shape[0], len(start)))
        states = model(tokens, decoder_tokens, key=None, segment_ids=batch["segment_ids"])
        return model.logits(states[:, -1:])


def build_token_masker(config: RunConfig, context: ExampleContext) -> TokenMasker:
    """Return how tokens are masked for the model of a run, after the virtual tokens of an adaptation.

    Args:
        config: of the run.
        context: of the run.

    Raises:
        UserError: the tokenizer has no [MASK], sentinel or mode token, or the model predicts no tokens.
    """
    vocabulary = context.vocabulary
    start = tuple(virtual_tokens(context.num_virtual_tokens).tolist())
    if config.model.family == "encoder_decoder":
        if not vocabulary.sentinels:
            raise UserError(f"{USER}: the tokenizer has no sentinels (<extra_id_0>); set eval.likelihood=conditional")
        if config.objective is not None:
            start += config.objective.infilling_prefix(vocabulary)
        template = SpecialTokensTemplate(start, vocabulary.require_eos(USER))
        return InfilledTokens(template, vocabulary.sentinels[0], context.start_token)
    if not config.model.predicts_tokens:
        raise UserError(f"{USER}: this model predicts no tokens (model.outputs: {list(config.model.outputs)})")
    template = encoder_template(vocabulary, USER)
    start += template.start
    if config.model.query_stream:
        return PermutedTokens(replace(template, start=start))
    return MaskedTokens(SpecialTokensTemplate(start, template.end), vocabulary.require_token(USER, *MASK))
