"""The states of every layer of a model, from one pass, and the weights of its attention."""

from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

from t5x_lite.models.attention import kernels
from t5x_lite.models.attention.context import AttentionContext
from t5x_lite.models.attention.latent import MultiHeadLatentAttention
from t5x_lite.models.attention.layer import Attention
from t5x_lite.models.backbone import Backbone
from t5x_lite.models.block import Block, self_attention
from t5x_lite.models.reorder import reorder_shared_rows
from t5x_lite.models.spec import ModelSpec


class _LayerRecorder:
    """Takes the place of `Stack.mix`, keeps the outputs of all layers, and returns that of the last."""

    def __init__(self) -> None:
        self.outputs: list[Float[Array, "layers b l d"]] = []

    def __call__(self, outputs: Float[Array, "layers b l d"]) -> Float[Array, "b l d"]:
        self.outputs.append(outputs)
        return outputs[-1]


@dataclass(frozen=True)
class _Layers:
    """The layers of a model after a pass.

    Attributes:
        backbone: the encoder or decoder.
        outputs: the input of the first layer, and the states after each, in the order in which the stack has tokens.
        last_states: those after the last layer, normalised where the stack does so, in the order of the text.
        context: which tokens attend to which.
        order: the place in the text of each of the stack's tokens; the mesh axis `context` changes it.
    """

    backbone: Backbone
    outputs: Float[Array, "layers b l d"]
    last_states: Float[Array, "b l d"]
    context: AttentionContext
    order: Int[np.ndarray, "l"]


def _run_layers(spec: ModelSpec, params: PyTree[Array], batch: dict[str, Array]) -> _Layers:
    text_model = spec.model(params).text_model
    backbone: Backbone = text_model.backbone
    stack = backbone.stack
    recorder = _LayerRecorder()
    stack.mix = recorder
    contexts: list[AttentionContext] = []
    build_context = stack.attention_context

    def record_context(*arguments: object, **options: object) -> AttentionContext:
        contexts.append(build_context(*arguments, **options))  # type: ignore[arg-type]
        return contexts[-1]

    stack.attention_context = record_context  # type: ignore[method-assign]
    tokens = batch["tokens"]
    token_types = batch.get("token_types")
    last_states, _ = backbone(text_model.tokens(tokens), None, batch["segment_ids"], token_types=token_types)
    (outputs,) = recorder.outputs
    (context,) = contexts
    order = kernels.row_order(stack.config, tokens.shape[1], causal=stack.causal)
    return _Layers(backbone, outputs, last_states, context, order)


def compute_layer_states(
    spec: ModelSpec, params: PyTree[Array], batch: dict[str, Array]
) -> Float[Array, "layers b l d"]:
    """Return the input of the first layer and the states after each layer, in float32.

    Only the last layer's states pass the final norm of the stack, where it has one.

    Args:
        spec: the model without its weights; of an encoder_decoder the encoder is used, of ELECTRA the discriminator.
        params: its weights.
        batch: `tokens` and `segment_ids`.
    """
    layers = _run_layers(spec, params, batch)
    outputs = layers.outputs
    rows = reorder_shared_rows(outputs.reshape(-1, *outputs.shape[2:]), np.argsort(layers.order))
    outputs = rows.reshape(outputs.shape)
    return jnp.concatenate([outputs[:-1], layers.last_states[None]]).astype(jnp.float32)


def compute_attention_weights(
    spec: ModelSpec, params: PyTree[Array], batch: dict[str, Array]
) -> Float[Array, "b layers h l l"]:
    """Return the weights with which each token attends to each, in float32, of the layers that have self-attention.

    Args: those of `compute_layer_states`.
    """
    layers = _run_layers(spec, params, batch)
    weights = []
    for block, x in zip(_blocks(layers.backbone), layers.outputs, strict=False):
        if block.attention is not None:
            weights.append(_attention_weights(block, block.attention, x, layers.context))
    in_text_order = np.argsort(layers.order)
    stacked = jnp.stack(weights, axis=1).astype(jnp.float32)
    return stacked[:, :, :, in_text_order][..., in_text_order]


def _blocks(backbone: Backbone) -> Iterator[Block]:
    """Yield the layers in the order in which they are applied."""
    for stack in (backbone.stack.first, backbone.stack):
        if stack is None:
            continue
        graph, weights = nnx.split(stack.layers)
        for repeat in range(stack.repeats):
            group = repeat // stack.passes
            blocks = nnx.merge(graph, jax.tree.map(lambda weight, group=group: weight[group], weights))
            for number in range(len(stack.period)):
                yield blocks[str(number)]


def _attention_weights(
    block: Block, attention: Attention | MultiHeadLatentAttention, x: Float[Array, "b l d"], context: AttentionContext
) -> Float[Array, "b h l l"]:
    """Return the weights of a layer's attention: with unit vectors for values they are its output."""
    captured: list[Float[Array, "b l h k"]] = []
    (_, kv_heads), (_, width) = attention.value.outputs
    length = x.shape[1]

    def capture(out: Float[Array, "b l h k"]) -> Float[Array, "b l d"]:
        captured.append(out)
        return jnp.zeros_like(x)

    attention.out = capture  # type: ignore[assignment]
    for start in range(0, length, width):
        units = jnp.eye(length, dtype=x.dtype)[:, start : start + width]
        units = jnp.pad(units, [(0, 0), (0, width - units.shape[1])])
        values = jnp.broadcast_to(units[:, None], (x.shape[0], length, kv_heads, width))
        attention.value = lambda source, values=values: values  # type: ignore[assignment]
        self_attention(attention, block.residual.read(x, block.attention_norm), context, None, None)
    return jnp.moveaxis(jnp.concatenate(captured, axis=-1)[..., :length], 1, 2)
