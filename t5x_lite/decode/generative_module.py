"""The interface of a module that generates text, and how it is built from weights."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from t5x_lite.models.backbone import DecoderCache
from t5x_lite.models.int8_weights import Int8Matrix
from t5x_lite.models.layers import WeightAxes
from t5x_lite.models.spec import ModelSpec


@runtime_checkable
class GenerativeModule(Protocol):
    """A decoder or an encoder_decoder with a KV cache."""

    def prefill(
        self, tokens: Int[Array, "b l"], segment_ids: Int[Array, "b l"], new_tokens: int, /
    ) -> tuple[Float[Array, "b 1 d"], DecoderCache]:
        """Prefill: return the state that predicts the first new token, and a cache with room for `new_tokens` more."""

    def decode_step(
        self, tokens: Int[Array, "b l"], segment_ids: Int[Array, "b l"], cache: DecoderCache, /
    ) -> tuple[Float[Array, "b l d"], DecoderCache]:
        """Decode step: return the states of tokens that follow those of the cache, and the extended cache."""

    def logits(self, hidden: Float[Array, "b l d"], /) -> Float[Array, "b l v"]:
        """Return the score of every token of the vocabulary."""


def unstack_layers(axes: PyTree[WeightAxes], params: PyTree[Array]) -> PyTree[Array]:
    """Replace weights that are stacked over layers by a tuple with an array per layer, if they are on one CPU.

    Decoding a token on a CPU takes as long as reading the weights, and slicing a layer out of a stack would copy them.
    The arrays of the tuple share the memory of the stack. Weights in int8 stay stacked.
    """

    def unstack(axes: WeightAxes, array: Array | Int8Matrix) -> Array | Int8Matrix | tuple[Array, ...]:
        if isinstance(array, Int8Matrix):
            return array
        is_stacked = array.ndim > len(axes.names)
        platforms = [device.platform for device in array.devices()]
        if not is_stacked or platforms != ["cpu"]:
            return array
        # A view of `array` itself would be cached in it, and a training step could no longer donate it.
        layers = np.asarray(array.addressable_data(0))
        return tuple([jax.device_put(layer, may_alias=True) for layer in layers])

    return jax.tree.map(unstack, axes, params)


def build_module(spec: ModelSpec, params: PyTree[Array]) -> GenerativeModule:
    """Build the module from weights that `unstack_layers` may have unstacked. Call it inside a compiled function.

    There the compiler reads each layer in place and does not stack the layers again.
    """

    def stack(_: WeightAxes, leaf: Array | Int8Matrix | tuple[Array, ...]) -> Array | Int8Matrix:
        return jnp.stack(leaf) if isinstance(leaf, tuple) else leaf

    return spec.model(jax.tree.map(stack, spec.axes, params))
