"""Decoding token by token with a cache, for comparisons with one pass over a row."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int


def pad_left(rows: Sequence[Int[np.ndarray, "1 _"]]) -> tuple[Int[np.ndarray, "b l"], Int[np.ndarray, "b l"]]:
    """Return prompts as rows that end together, as in generation, and their segment ids, 0 for padding."""
    length = max(row.shape[1] for row in rows)
    prompts = np.zeros((len(rows), length), np.int32)
    segment_ids = np.zeros_like(prompts)
    for number, row in enumerate(rows):
        start = length - row.shape[1]
        prompts[number, start:] = row[0]
        segment_ids[number, start:] = 1
    return prompts, segment_ids


def decode_states(
    model: Any,
    prompts: Int[np.ndarray, "b l"],
    segment_ids: Int[np.ndarray, "b l"],
    new_tokens: Int[np.ndarray, "b t"],
) -> Float[np.ndarray, "b t+1 d"]:
    """Return the states of the last token of the prompt (of an encoder_decoder: of its first token) and of new tokens.

    The new tokens are decoded one after the other.
    """
    batch, count = new_tokens.shape
    decode_step = jax.jit(model.decode_step)
    states, cache = model.prefill(jnp.asarray(prompts), jnp.asarray(segment_ids), count)
    states_of_steps = [np.asarray(states)]
    for column in range(count):
        states, cache = decode_step(new_tokens[:, column : column + 1], np.ones((batch, 1), np.int32), cache)
        states_of_steps.append(np.asarray(states))
    return np.concatenate(states_of_steps, axis=1)
