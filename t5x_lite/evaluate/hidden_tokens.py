"""Rows in which a model predicts a hidden token: a [MASK] for an encoder, a sentinel for an encoder_decoder.

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
from t5x_lite.objectives.framing import Frame, encoder_frame, soft_tokens
from t5x_lite.objectives.masked import MASK
from t5x_lite.objectives.model_protocols import ElectraModel, LanguageModel, PermutationModel
from t5x_lite.objectives.objective import ExampleContext
from t5x_lite.objectives.permutation import SEEN_BY_ALL
from t5x_lite.parallel.batched_function import Features

USER = "pseudo-log-likelihood"
"""The user of the special tokens, for error messages."""


@dataclass(frozen=True)
class TokenHider(ABC):
    """Hides tokens of a text from a model, and reads the prediction of the first of them.

    Attributes:
        frame: the ids around the text.
    """

    frame: Frame

    @property
    @abstractmethod
    def gap(self) -> int:
        """The token that stands in a text where tokens are hidden."""

    @abstractmethod
    def features(self, tokens: Int[np.ndarray, "l"], hidden: slice) -> Features:
        """Return the row of a text without its tokens `hidden`: `tokens`, `segment_ids` and `position` of the first."""

    @abstractmethod
    def logits(self, model: LanguageModel | ElectraModel, batch: dict[str, Array]) -> Float[Array, "b 1 v"]:
        """Return the scores of every token of the vocabulary for the first hidden one of each row."""


@dataclass(frozen=True)
class MaskedTokens(TokenHider):
    """A [MASK] replaces each hidden token. ELECTRA's generator predicts them.

    Attributes:
        mask: the id of [MASK].
    """

    mask: int

    @property
    def gap(self) -> int:
        """See `TokenHider`."""
        return self.mask

    def features(self, tokens: Int[np.ndarray, "l"], hidden: slice) -> Features:
        """See `TokenHider`."""
        masked = tokens.copy()
        masked[hidden] = self.mask
        row = self.frame.tokens([masked])
        position = len(self.frame.start) + hidden.start
        return {"tokens": row, "segment_ids": np.ones_like(row), "position": np.array([position], np.int32)}

    def logits(self, model: LanguageModel | ElectraModel, batch: dict[str, Array]) -> Float[Array, "b 1 v"]:
        """See `TokenHider`."""
        encoder = model.generator if isinstance(model, ElectraModel) else model
        states = encoder(batch["tokens"], key=None, segment_ids=batch["segment_ids"])
        return encoder.logits(gather_positions(states, batch["position"][:, :1]))


@dataclass(frozen=True)
class PermutedTokens(TokenHider):
    """Hidden tokens come last in an order of factorisation, and a query stream predicts them: nothing replaces them."""

    @property
    def gap(self) -> int:
        """See `TokenHider`. The query stream does not see it: any token would do."""
        return self.frame.end

    def features(self, tokens: Int[np.ndarray, "l"], hidden: slice) -> Features:
        """See `TokenHider`. The first hidden token has the rank 0, the others, which come after it, have the rank 1."""
        row = self.frame.tokens([tokens])
        types = self.frame.token_types([tokens])
        before = len(self.frame.start)
        first = before + hidden.start
        rank = np.full_like(row, SEEN_BY_ALL)
        rank[first : before + hidden.stop] = 1
        rank[first] = 0
        position = np.array([first], np.int32)
        return {"tokens": row, "segment_ids": np.ones_like(row), "position": position, "rank": rank, "types": types}

    def logits(self, model: LanguageModel | ElectraModel, batch: dict[str, Array]) -> Float[Array, "b 1 v"]:
        """See `TokenHider`."""
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
class InfilledTokens(TokenHider):
    """The first sentinel replaces all hidden tokens; the decoder predicts what follows this sentinel.

    Attributes:
        sentinel: the id of the first sentinel.
        start_token: the token that the decoder begins with.
    """

    sentinel: int
    start_token: int = 0

    @property
    def gap(self) -> int:
        """See `TokenHider`."""
        return self.sentinel

    def features(self, tokens: Int[np.ndarray, "l"], hidden: slice) -> Features:
        """See `TokenHider`. The position is that in the decoder."""
        shown = np.concatenate([tokens[: hidden.start], [self.sentinel], tokens[hidden.stop :]])
        row = self.frame.tokens([shown])
        return {"tokens": row, "segment_ids": np.ones_like(row), "position": np.array([1], np.int32)}

    def logits(self, model: LanguageModel | ElectraModel, batch: dict[str, Array]) -> Float[Array, "b 1 v"]:
        """See `TokenHider`."""
        assert isinstance(model, LanguageModel)
        tokens = batch["tokens"]
        beginning = jnp.array([self.start_token, self.sentinel], tokens.dtype)
        decoder_tokens = jnp.broadcast_to(beginning, (tokens.shape[0], len(beginning)))
        states = model(tokens, decoder_tokens, key=None, segment_ids=batch["segment_ids"])
        return model.logits(states[:, -1:])


def build_token_hider(config: RunConfig, context: ExampleContext) -> TokenHider:
    """Return how tokens are hidden from the model of a run, after the soft tokens of an adaptation.

    Args:
        config: of the run.
        context: of the run.

    Raises:
        UserError: the tokenizer has no [MASK], sentinel or mode token, or the model predicts no tokens.
    """
    vocabulary = context.vocabulary
    start = tuple(soft_tokens(context.placeholders).tolist())
    if config.model.family == "encoder_decoder":
        if not vocabulary.sentinels:
            raise UserError(f"{USER}: the tokenizer has no sentinels (<extra_id_0>); set eval.likelihood=conditional")
        if config.objective is not None:
            start += config.objective.infilling_prefix(vocabulary)
        frame = Frame(start, vocabulary.require_eos(USER))
        return InfilledTokens(frame, vocabulary.sentinels[0], context.start_token)
    if not config.model.predicts_tokens:
        raise UserError(f"{USER}: this model predicts no tokens (model.outputs: {list(config.model.outputs)})")
    frame = encoder_frame(vocabulary, USER)
    start += frame.start
    if config.model.query_stream:
        return PermutedTokens(replace(frame, start=start))
    return MaskedTokens(Frame(start, frame.end), vocabulary.require_token(USER, *MASK))
