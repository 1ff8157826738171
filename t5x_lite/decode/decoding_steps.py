"""The steps of decoding that are compiled: prefill of the prompts, and sampling of the tokens that follow."""

from dataclasses import dataclass, field
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from t5x_lite.decode.generative_module import build_module
from t5x_lite.decode.logit_rules import History, LogitRules, append_tokens
from t5x_lite.decode.sampling import Sampling, sample_token
from t5x_lite.decode.state import DecodeState, repeat_rows, reshard_cache
from t5x_lite.models.sharding import constrain
from t5x_lite.models.spec import ModelSpec

CHUNK = 16
"""Tokens sampled on the device before the host receives them: for streaming, stop strings and an early end."""

ChunkCarry: TypeAlias = tuple[Int[Array, "b chunk"], Int[Array, "b 1"], DecodeState]
"""The tokens of a chunk, the last of them, and the state after it."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prompts:
    """A batch of prompts that end together.

    Attributes:
        tokens: padded on the left with 0.
        segment_ids: 1 for tokens, 0 for padding.
        history: the tokens that the rules of decoding read, with -1 where a new token has room; without columns if
            no rule reads them.
    """

    tokens: Int[np.ndarray | Array, "b l"]
    segment_ids: Int[np.ndarray | Array, "b l"]
    history: Int[np.ndarray | Array, "b w"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RandomStreams:
    """The random numbers of the rows of a batch.

    Attributes:
        seed: the seed of all rows.
        numbers: the numbers of each row's stream; rows of equal numbers draw the same.
    """

    seed: Int[np.ndarray | Array, ""]
    numbers: Int[np.ndarray | Array, "b n"]

    def keys(self, index: Int[Array, ""] | int) -> Key[Array, "b"]:
        """Return the key of each row for new token `index`."""

        def row_key(numbers: Int[Array, "n"]) -> Key[Array, ""]:
            key = jax.random.key(self.seed)
            for number in numbers:
                key = jax.random.fold_in(key, number)
            return jax.random.fold_in(key, index)

        return jax.vmap(row_key)(jnp.asarray(self.numbers))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenSpan:
    """The new tokens from `start` to `stop`, counted from 0."""

    start: Int[Array, ""] | int
    stop: Int[Array, ""] | int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenChoice:
    """The choice of a token by its scores.

    Attributes:
        sampling: settings of the draw, without those of rules; see `Decoding.without_rules`.
        rules: rules that change the scores.
        streams: random numbers of the draws.
    """

    sampling: Sampling = field(metadata={"static": True})
    rules: LogitRules
    streams: RandomStreams


def prefill(
    spec: ModelSpec, new_tokens: int, copies: int, params: PyTree[Array], prompts: Prompts
) -> tuple[Float[Array, "bn v"], DecodeState]:
    """Run the model on prompts.

    Args:
        spec: the model without its weights.
        new_tokens: the largest number of new tokens, for which the cache has room.
        copies: how often each row is repeated in what is returned; the copies of a row are neighbours.
        params: weights, see `generative_module.unstack_layers`.
        prompts: the prompts.

    Returns:
        The logits of the first new token, and the state to continue from.
    """
    module = build_module(spec, params)
    tokens = constrain(jnp.asarray(prompts.tokens), "batch", None)
    segment_ids = constrain(jnp.asarray(prompts.segment_ids), "batch", None)
    hidden, cache = module.prefill(tokens, segment_ids, new_tokens)
    logits = module.logits(hidden)[:, 0]
    history = jnp.repeat(jnp.asarray(prompts.history), copies, axis=0)
    cache = reshard_cache(repeat_rows(cache, copies))
    return jnp.repeat(logits, copies, axis=0), DecodeState(history, cache)


def choose_next(
    choice: TokenChoice, logits: Float[Array, "b v"], history: History, index: Int[Array, ""]
) -> tuple[Int[Array, "b 1"], History]:
    """Choose new token `index` of each row, and append it to the history.

    A draw depends on the seed, the row's stream and the index alone, so it does not depend on how tokens are chunked.
    """
    scores = choice.rules.apply(logits, history, index)
    token = sample_token(scores, choice.sampling, choice.streams.keys(index))[:, None]
    return constrain(token, None, None), append_tokens(history, token)


def decode_chunk(
    spec: ModelSpec,
    choice: TokenChoice,
    params: PyTree[Array],
    token: Int[Array, "b 1"],
    state: DecodeState,
    span: TokenSpan,
) -> ChunkCarry:
    """Choose the tokens of `span`, of which there are at most `CHUNK`, after `token`.

    Returns:
        The new tokens, 0 from `span.stop` on; the last of them; the state to continue from.
    """

    def decode_step(index: Int[Array, ""], carry: ChunkCarry) -> ChunkCarry:
        module = build_module(spec, params)
        tokens, token, state = carry
        hidden, cache = module.decode_step(token, jnp.ones_like(token), state.cache)
        logits = module.logits(hidden)[:, 0]
        token, history = choose_next(choice, logits, state.history, index)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token, index - span.start, axis=1)
        return tokens, token, DecodeState(history, reshard_cache(cache))

    no_tokens = jnp.zeros((len(token), CHUNK), token.dtype)
    return jax.lax.fori_loop(span.start, span.stop, decode_step, (no_tokens, token, state))
