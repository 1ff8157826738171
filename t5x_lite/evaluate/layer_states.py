"""The states of every layer of a model, from one pass."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from t5x_lite.models.attention import kernels
from t5x_lite.models.backbone import reorder
from t5x_lite.models.spec import ModelSpec


class _LayerRecorder:
    """Takes the place of `Stack.mix`, keeps the outputs of all layers, and returns that of the last."""

    def __init__(self) -> None:
        self.outputs: list[Float[Array, "layers b l d"]] = []

    def __call__(self, outputs: Float[Array, "layers b l d"]) -> Float[Array, "b l d"]:
        self.outputs.append(outputs)
        return outputs[-1]


def compute_layer_states(
    spec: ModelSpec, family: str, params: PyTree[Array], batch: dict[str, Array]
) -> Float[Array, "layers b l d"]:
    """Return the input of the first layer and the states after each layer, in float32.

    Only the last layer's states pass the final norm of the stack, where it has one.

    Args:
        spec: the model without its weights; of an encoder_decoder the encoder is used, of ELECTRA the discriminator.
        family: of the model.
        params: its weights.
        batch: `tokens` and `segment_ids`.
    """
    module = spec.model(params)
    module = getattr(module, "discriminator", module)
    side = module.decoder if family == "decoder" else module.encoder
    recorder = _LayerRecorder()
    side.stack.mix = recorder
    tokens = batch["tokens"]
    last_states, _ = side(module.tokens(tokens), None, batch["segment_ids"])
    (outputs,) = recorder.outputs
    # With the mesh axis `context` the stack has the tokens in another order.
    order = kernels.row_order(side.stack.config, tokens.shape[1], causal=side.stack.causal)
    outputs = reorder(outputs.reshape(-1, *outputs.shape[2:]), np.argsort(order)).reshape(outputs.shape)
    return jnp.concatenate([outputs[:-1], last_states[None]]).astype(jnp.float32)


def is_text(batch: dict[str, Array]) -> Bool[Array, "b l"]:
    """Return which positions hold tokens of the text: not padding, and not soft prompts, whose ids are negative."""
    return (batch["segment_ids"] > 0) & (batch["tokens"] >= 0)
