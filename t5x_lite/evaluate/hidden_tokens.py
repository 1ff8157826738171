"""Rows in which a model predicts a hidden token: a [MASK] for an encoder, a sentinel for an encoder_decoder.

An encoder with a query stream predicts tokens that it does not see.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from t5x_lite.config import RunConfig
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.errors import UserError
from t5x_lite.models.gather_positions import gather_positions
from t5x_lite.objectives.framing import LAST_TYPE, encoder_frame
from t5x_lite.objectives.masked import MASK
from t5x_lite.objectives.model_protocols import ElectraModel, LanguageModel, PermutationModel
from t5x_lite.objectives.permutation import SEEN_BY_ALL
from t5x_lite.parallel.batched_function import Features

USER = "pseudo-log-likelihood"
"""The user of the special tokens, for error messages."""


@dataclass(frozen=True)
class TokenHider(ABC):
    """Hides tokens of a text from a model, and reads the prediction of the first of them.

    Attributes:
        start: ids before the text.
        end: id after the text.
    """

    start: tuple[int, ...]
    end: int

    @property
    def frame_size(self) -> int:
        """Return the number of ids around a text."""
        return len(self.start) + 1

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
        row = _frame(self.start, masked, self.end)
        position = len(self.start) + hidden.start
        return {"tokens": row, "segment_ids": np.ones_like(row), "position": np.array([position], np.int32)}

    def logits(self, model: LanguageModel | ElectraModel, batch: dict[str, Array]) -> Float[Array, "b 1 v"]:
        """See `TokenHider`."""
        encoder = model.generator if isinstance(model, ElectraModel) else model
        states = encoder(batch["tokens"], key=None, segment_ids=batch["segment_ids"])
        return encoder.logits(gather_positions(states, batch["position"][:, :1]))


@dataclass(frozen=True)
class PermutedTokens(TokenHider):
    """Hidden tokens come last in an order of factorisation, where a query stream predicts them: nothing replaces them.

    Attributes:
        last: ids after everything.
    """

    last: tuple[int, ...] = ()

    @property
    def gap(self) -> int:
        """See `TokenHider`. The query stream does not see it: any token would do."""
        return self.end

    @property
    def frame_size(self) -> int:
        """See `TokenHider`."""
        return super().frame_size + len(self.last)

    def features(self, tokens: Int[np.ndarray, "l"], hidden: slice) -> Features:
        """See `TokenHider`. The first hidden token has the rank 0, the others, which come after it, have the rank 1."""
        row = np.concatenate([_frame(self.start, tokens, self.end), self.last]).astype(np.int32)
        first = len(self.start) + hidden.start
        rank = np.full_like(row, SEEN_BY_ALL)
        rank[first : len(self.start) + hidden.stop] = 1
        rank[first] = 0
        types = np.zeros_like(row)
        types[len(row) - len(self.last) :] = LAST_TYPE
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
        row = _frame(self.start, shown, self.end)
        return {"tokens": row, "segment_ids": np.ones_like(row), "position": np.array([1], np.int32)}

    def logits(self, model: LanguageModel | ElectraModel, batch: dict[str, Array]) -> Float[Array, "b 1 v"]:
        """See `TokenHider`."""
        assert isinstance(model, LanguageModel)
        tokens = batch["tokens"]
        beginning = jnp.array([self.start_token, self.sentinel], tokens.dtype)
        decoder_tokens = jnp.broadcast_to(beginning, (tokens.shape[0], len(beginning)))
        states = model(tokens, decoder_tokens, key=None, segment_ids=batch["segment_ids"])
        return model.logits(states[:, -1:])


def _frame(start: tuple[int, ...], tokens: Int[np.ndarray, "l"], end: int) -> Int[np.ndarray, "_"]:
    return np.concatenate([start, tokens, [end]]).astype(np.int32)


def build_token_hider(config: RunConfig, tokenizer: Tokenizer, soft_prompt: tuple[int, ...]) -> TokenHider:
    """Return how tokens are hidden from the model of a run.

    Args:
        config: of the run.
        tokenizer: of the run.
        soft_prompt: ids of a learnt soft prompt, before every text.

    Raises:
        UserError: the tokenizer has no [MASK], sentinel or mode token, or the model predicts no tokens.
    """
    vocabulary = tokenizer.vocabulary()
    if config.model.family == "encoder_decoder":
        if not vocabulary.sentinels:
            raise UserError(f"{USER}: the tokenizer has no sentinels (<extra_id_0>); set eval.likelihood=conditional")
        prefix: tuple[int, ...] = ()
        if config.objective is not None:
            prefix = config.objective.infilling_prefix(vocabulary)
        start = (*soft_prompt, *prefix)
        eos = vocabulary.require_eos(USER)
        return InfilledTokens(start, eos, vocabulary.sentinels[0], config.model.start_token)
    if not config.model.predicts_tokens:
        raise UserError(f"{USER}: this model predicts no tokens (model.outputs: {list(config.model.outputs)})")
    frame = encoder_frame(vocabulary, USER)
    if config.model.query_stream:
        return PermutedTokens((*soft_prompt, *frame.start), frame.end, frame.last)
    return MaskedTokens((*soft_prompt, *frame.start), frame.end, vocabulary.require_token(USER, *MASK))
