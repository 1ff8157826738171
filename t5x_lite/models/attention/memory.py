"""States of the batch before that attention reads beside its row (Transformer-XL: Dai et al. 2019, §3.2).

A layer keeps the inputs of its attention, and computes their keys and values with its present weights. No gradient
passes to them, because they come from another step.
"""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from t5x_lite.models.attention.context import AttentionContext, TokenPositions
from t5x_lite.models.attention.latent import MultiHeadLatentAttention
from t5x_lite.models.attention.layer import Attention
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.mixers.mixer import MixerState, SelfAttention
from t5x_lite.models.mixers.module import SEGMENT, StateSlice

STATES = "states"
"""Name in a memory of the inputs of attention, `[b, memory, d]`; `SEGMENT` is the document of each, 0 for none."""


def empty_memory(config: ModelConfig, mixer: SelfAttention, batch: int) -> MixerState:
    """Return the memory of one layer before the first batch."""
    rows = (batch, mixer.memory)
    return {SEGMENT: jnp.zeros(rows, jnp.int32), STATES: jnp.zeros((*rows, config.embed), config.compute)}


def attend_with_memory(
    attention: Attention | MultiHeadLatentAttention,
    x: Float[Array, "b l d"],
    context: AttentionContext,
    memory: StateSlice,
    key: PRNGKeyArray | None,
) -> tuple[Float[Array, "b l d"], StateSlice]:
    """Attend to the tokens of a row and to a memory; return the output, and the memory with the row after it."""
    state = memory.read()
    size = state[SEGMENT].shape[1]
    states = jnp.concatenate([state[STATES].astype(x.dtype), x], axis=1)
    keys = _with_memory(context.keys, state[SEGMENT])
    positions = context.positions
    if positions is not None:
        positions = jnp.concatenate([positions[:, :1] + np.arange(-size, 0), positions], axis=1)
    source = attention.keys_values(states, replace(context, positions=positions))
    out = attention(x, source, replace(context, keys=keys, bias=None, self_attention=False), key)
    # Of all that a row has read, the next one may continue the last document.
    is_last_document = (keys.segment_ids == keys.segment_ids[:, -1:]) & (keys.segment_ids > 0)
    update = {SEGMENT: is_last_document[:, -size:].astype(jnp.int32), STATES: states[:, -size:]}
    return out, memory.write(update)


def _with_memory(keys: TokenPositions, segments: Int[Array, "b m"]) -> TokenPositions:
    """Return the positions of the memory's tokens, which end before 0, and of the keys of a row."""
    index = np.concatenate([np.arange(-segments.shape[1], 0), np.asarray(keys.index)])
    return TokenPositions(index, jnp.concatenate([segments, keys.segment_ids], axis=1))
