"""The module that holds the parameters of a mixer and runs it, and the states of decoding beside the KV cache."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.mixers.mixer import MixerState, StateMixer
from t5x_lite.models.sharding import constrain

SEGMENT = "segment"
"""Name in a state of the document of the last token, `[b]`; 0 before the first token."""


@dataclass(frozen=True)
class StateSlice:
    """The state of one layer inside the arrays of all layers; see `CacheSlice`.

    Attributes:
        layers: arrays `[layers, b, …]`.
        layer: number of the layer.
    """

    layers: MixerState
    layer: Int[Array, ""]

    def read(self) -> MixerState:
        """Return the state of this layer."""

        def read_layer(array: Array) -> Array:
            return jax.lax.dynamic_index_in_dim(array, self.layer, keepdims=False)

        return jax.tree.map(read_layer, self.layers)

    def write(self, state: MixerState) -> "StateSlice":
        """Return the arrays with the state of this layer replaced."""

        def write_layer(array: Array, update: Array) -> Array:
            return jax.lax.dynamic_update_index_in_dim(array, update.astype(array.dtype), self.layer, axis=0)

        return StateSlice(jax.tree.map(write_layer, self.layers, state), self.layer)


class MixerModule(nnx.Module):
    """A sequence mixer of one layer."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, config: ModelConfig, mixer: StateMixer, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.mixer = mixer
        for name, parameter in mixer.init_parameters(config, rngs).items():
            setattr(self, name, parameter)

    def __call__(
        self,
        x: Float[Array, "b l d"],
        segment_ids: Int[Array, "b l"],
        cache: StateSlice | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "b l d"], StateSlice | None]:
        """Mix the tokens of each document of a row.

        Args:
            x: states of the tokens.
            segment_ids: the document of each token, 0 for padding.
            cache: the state after earlier tokens, in decoding; None: there are none.
            key: turns dropout on.
        """
        # The recurrence reads a row in order, so a device has all of it.
        x = constrain(x, "batch", None, None)
        state = empty_state(self.config, self.mixer, len(x)) if cache is None else cache.read()
        continues = continued_tokens(segment_ids, state.pop(SEGMENT))
        y, state = self.mixer.mix(self, x, continues, state, key)
        if cache is not None:
            cache = cache.write({SEGMENT: segment_ids[:, -1], **state})
        return y, cache


def empty_state(config: ModelConfig, mixer: StateMixer, batch: int) -> MixerState:
    """Return the state of one layer before the first token."""
    return {SEGMENT: jnp.zeros(batch, jnp.int32), **mixer.empty_state(config, batch)}


def continued_tokens(segment_ids: Int[Array, "b l"], previous: Int[Array, "b"]) -> Bool[Array, "b l"]:
    """Return which tokens belong to the document of the token before them."""
    before = jnp.concatenate([previous[:, None], segment_ids[:, :-1]], axis=1)
    return segment_ids == before
