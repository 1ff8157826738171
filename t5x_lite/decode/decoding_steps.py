"""The steps of decoding that are compiled: prefill of the prompts, and sampling of the tokens that follow."""

from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from t5x_lite.decode.generative_module import build_module
from t5x_lite.decode.sampling import Sampling, apply_repetition_penalty, mark_tokens, sample_token
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
        present: the tokens that the repetition penalty applies to from the start; -1 is none.
    """

    tokens: Int[np.ndarray | Array, "b l"]
    segment_ids: Int[np.ndarray | Array, "b l"]
    present: Int[np.ndarray | Array, "b p"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenSpan:
    """The new tokens from `start` to `stop`, counted from 0, of the random streams of a seed."""

    seed: Int[np.ndarray | Array, ""]
    start: Int[Array, ""] | int
    stop: Int[Array, ""] | int


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
    present = mark_tokens(jnp.zeros(logits.shape, bool), jnp.asarray(prompts.present))
    cache = reshard_cache(repeat_rows(cache, copies))
    return jnp.repeat(logits, copies, axis=0), DecodeState(jnp.repeat(present, copies, axis=0), cache)


def sample_next(
    sampling: Sampling,
    logits: Float[Array, "b v"],
    present: Bool[Array, "b v"],
    seed: Int[np.ndarray | Array, ""],
    index: Int[Array, ""],
) -> tuple[Int[Array, "b 1"], Bool[Array, "b v"]]:
    """Sample new token `index` of each row, and mark it as present.

    A draw depends on the seed, the row and the index alone, so it does not depend on how tokens are chunked.
    """
    fold_in_row = partial(jax.random.fold_in, jax.random.key(seed))
    row_keys = jax.vmap(fold_in_row)(jnp.arange(len(logits)))
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(row_keys, index)
    scores = apply_repetition_penalty(logits, present, sampling.repetition_penalty)
    token = sample_token(scores, sampling, keys)[:, None]
    if sampling.repetition_penalty != 1:
        present = mark_tokens(present, token)
    return constrain(token, None, None), present


def decode_chunk(
    spec: ModelSpec,
    sampling: Sampling,
    params: PyTree[Array],
    token: Int[Array, "b 1"],
    state: DecodeState,
    span: TokenSpan,
) -> ChunkCarry:
    """Sample the tokens of `span`, of which there are at most `CHUNK`, after `token`.

    Returns:
        The new tokens, 0 from `span.stop` on; the last of them; the state to continue from.
    """

    def decode_step(index: Int[Array, ""], carry: ChunkCarry) -> ChunkCarry:
        module = build_module(spec, params)
        tokens, token, state = carry
        hidden, cache = module.decode_step(token, jnp.ones_like(token), state.cache)
        logits = module.logits(hidden)[:, 0]
        token, present = sample_next(sampling, logits, state.present, span.seed, index)
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token, index - span.start, axis=1)
        return tokens, token, DecodeState(present, reshard_cache(cache))

    no_tokens = jnp.zeros((len(token), CHUNK), token.dtype)
    return jax.lax.fori_loop(span.start, span.stop, decode_step, (no_tokens, token, state))
