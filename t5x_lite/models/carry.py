"""States of layers that the rows of a batch hand over to those of the next (truncated back-propagation).

Mikolov et al. 2010, §2: the hidden layer is not reset between the windows of a text. Dai et al. 2019, §3.2: attention
reads the states of the window before. No gradient passes from window to window, because the states come from another
step.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int, PyTree

from t5x_lite.models.attention.memory import empty_memory
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.mixers import Mixer, SelfAttention, StateMixer
from t5x_lite.models.mixers.mixer import MixerState
from t5x_lite.models.mixers.module import SEGMENT, empty_state
from t5x_lite.models.stack import LayerCache
from t5x_lite.models.transformer import Decoder


def empty_carry(model: ModelConfig, batch: int) -> dict[str, dict[str, Array]]:
    """Return the states before the first batch, `[repeats, batch, …]`, by number of the layer, first ones included."""
    carry = {}
    for number, layer in enumerate((*model.first, *model.period)):
        repeats = 1 if number < len(model.first) else model.count_repeats(model.layers)
        state = _first_state(model, layer.mixer, batch)
        carry[str(number)] = {name: jnp.broadcast_to(array, (repeats, *array.shape)) for name, array in state.items()}
    return carry


def _first_state(model: ModelConfig, mixer: Mixer, batch: int) -> MixerState:
    if isinstance(mixer, SelfAttention):
        return empty_memory(model, mixer, batch)
    assert isinstance(mixer, StateMixer)
    return empty_state(model, mixer, batch)


def set_initial_states(
    module: Decoder, carry: PyTree, continues: Int[Array, "b"], segment_ids: Int[Array, "b l"]
) -> None:
    """Let a decoder begin with carried states.

    Args:
        module: the decoder.
        carry: the states after the batch before.
        continues: 1 for rows whose first token belongs to the document of the last one in that batch.
        segment_ids: the document of each token.
    """
    segment = jnp.where(continues > 0, segment_ids[:, 0], 0)
    layers: list[LayerCache] = []
    for number in range(len(carry)):
        state = carry[str(number)]
        before = state[SEGMENT]
        of_rows = segment.reshape(1, -1, *[1] * (before.ndim - 2))
        layers.append({**state, SEGMENT: jnp.where(before > 0, of_rows, 0)})
    module.decoder.stack.carried_states = nnx.data(layers)


def final_states(module: Decoder) -> dict[str, dict[str, Array]]:
    """Return the states that a decoder has after a batch."""
    carried = module.decoder.stack.carried_states
    assert carried is not None
    states = {}
    for number, state in enumerate(carried):
        assert isinstance(state, dict)
        states[str(number)] = jax.lax.stop_gradient(state)
    return states
