"""Answers to a batch of prompts, sampled inside one compiled function."""

from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

from t5x_lite.decode.decoding_steps import (
    CHUNK,
    Prompts,
    RandomStreams,
    TokenChoice,
    TokenSpan,
    choose_next,
    decode_chunk,
    prefill,
)
from t5x_lite.decode.sampling import Sampling
from t5x_lite.decode.state import DecodeState
from t5x_lite.integers import ceil_div
from t5x_lite.models.spec import ModelSpec

AFTER_EOS = -1
"""Token id after the end of an answer."""

SampleCarry: TypeAlias = tuple[Int[Array, ""], Int[Array, "n 1"], DecodeState, Int[Array, "n _"]]
"""Number of the next token, the token before it, the state, and the tokens so far."""


def sample_answers(
    spec: ModelSpec,
    sampling: Sampling,
    copies: int,
    eos: int,
    params: PyTree[Array],
    prompts: Prompts,
    seed: Int[np.ndarray | Array, ""],
) -> Int[Array, "n {sampling.tokens}"]:
    """Return sampled answers, `AFTER_EOS` after the end of each. They depend on parameters, prompts and seed alone.

    Decoding ends after the chunk of tokens in which the last answer ends.

    Args:
        spec: the model without its weights.
        sampling: the settings of sampling, without rules and stop strings; its own seed is not read.
        copies: answers to each prompt; they are neighbours.
        eos: the token that ends an answer.
        params: the weights.
        prompts: the prompts.
        seed: of the random choices.
    """
    logits, state = prefill(spec, sampling.tokens, copies, params, prompts)
    streams = RandomStreams(seed, jnp.arange(len(logits))[:, None])
    choice = TokenChoice(sampling, sampling.resolve_rules(None, logits.shape[-1]), streams)
    token, history = choose_next(choice, logits, state.history, jnp.int32(0))
    room = 1 + CHUNK * ceil_div(sampling.tokens - 1, CHUNK)
    tokens = jnp.zeros((len(token), room), token.dtype)
    tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token, 0, axis=1)

    def goes_on(carry: SampleCarry) -> Bool[Array, ""]:
        start, _, _, tokens = carry
        is_sampled = jnp.arange(tokens.shape[1]) < start
        has_ended = jnp.any(is_sampled & (tokens == eos), axis=1)
        return (start < sampling.tokens) & ~has_ended.all()

    def sample_chunk(carry: SampleCarry) -> SampleCarry:
        start, token, state, tokens = carry
        stop = jnp.minimum(start + CHUNK, sampling.tokens)
        chunk, token, state = decode_chunk(spec, choice, params, token, state, TokenSpan(start, stop))
        return stop, token, state, jax.lax.dynamic_update_slice_in_dim(tokens, chunk, start, axis=1)

    first = (jnp.int32(1), token, DecodeState(history, state.cache), tokens)
    _, _, _, tokens = jax.lax.while_loop(goes_on, sample_chunk, first)
    tokens = tokens[:, : sampling.tokens]
    is_eos = tokens == eos
    is_after_eos = jnp.cumsum(is_eos, axis=1) - is_eos > 0
    return jnp.where(is_after_eos, AFTER_EOS, tokens)
