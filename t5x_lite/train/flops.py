"""FLOPs of training by formula, the numerator of MFU."""

import math
from dataclasses import dataclass
from functools import partial

from t5x_lite.adapt.trainable import TrainableSplit
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layer_config import LayerConfig
from t5x_lite.models.layers import WeightAxes
from t5x_lite.models.mixers import SelfAttention, StateMixer
from t5x_lite.models.quantization import QUANTIZED_AXES
from t5x_lite.models.spec import ModelSpec
from t5x_lite.objectives.objective import ExampleLengths
from t5x_lite.train.tokens_of_weight import tokens_of_weight, uses_of_weight
from t5x_lite.trees import flatten_names

ATTENTION_FLOPS = 12.0
"""FLOPs per channel of a head and pair of positions: two products, forward and twice backward, of 2 FLOPs each."""


def flops_per_example(
    model: ModelConfig,
    spec: ModelSpec,
    lengths: ExampleLengths,
    *,
    causal_half: bool = True,
    split: TrainableSplit | None = None,
) -> float:
    """Return the FLOPs of the forward and the backward pass of one example.

    The formula is that of PaLM (Chowdhery et al. 2022, appendix B): 6 for each weight of a matrix and token that is
    multiplied with it, and 12 · layers · heads · head_dim · queries · keys for attention. A band of attention counts as
    far as it reaches. Other mixers count their matrices and their `scan_flops`. Embedding lookups are left out, the
    output matrix counts the predicted tokens, and an expert counts the tokens that balanced routing sends to it.
    The keys and values of a memory count too. Matrices of position encodings are multiplied once for a batch and left
    out; a bias that depends on queries and keys counts the products of its pairs.
    Recomputation (`model.remat`) and unused capacity of experts are not counted.

    Args:
        model: the model.
        spec: its weights.
        lengths: tokens of an example.
        causal_half: causal attention counts half, because the other half is masked.
        split: which weights train. A frozen weight needs no gradient and counts 4 instead of 6. If only a head trains,
            no gradient passes through the frozen weights and they count 2.
    """
    shapes = flatten_names(spec.shapes)
    first_trained: dict[str, int | None] = dict.fromkeys(shapes, 0)
    if split is not None:
        first_trained = dict(split.first_trained_repeat)
    has_backward_pass = any(first is not None and not name.startswith("head.") for name, first in first_trained.items())
    matrix_flops = 0.0
    for name, axes in flatten_names(spec.axes).items():
        if _is_multiplied(model, name, axes):
            flops = _flops_per_weight(shapes[name].shape, first_trained[name], has_backward_pass=has_backward_pass)
            matrix_flops += flops * products_per_text(model, name, axes, shapes[name].shape, lengths)
    mixer_flops = attention_flops_per_text(model, lengths, causal_half=causal_half) + _scan_flops(model, lengths)
    mixer_flops += _memory_flops(model, lengths)
    if not has_backward_pass:
        mixer_flops /= 3
    return lengths.texts * (matrix_flops + mixer_flops)


def quantized_flops_per_example(model: ModelConfig, spec: ModelSpec, lengths: ExampleLengths) -> float:
    """Return the part of `flops_per_example` that `train.quantization` computes in 8 bits.

    All weights train; products of experts whose rows are sorted are counted, though they keep their type.
    """
    shapes = flatten_names(spec.shapes)
    flops = 0.0
    for name, axes in flatten_names(spec.axes).items():
        if axes.is_linear and _is_multiplied(model, name, axes) and not QUANTIZED_AXES.isdisjoint(axes.names):
            flops += 6.0 * products_per_text(model, name, axes, shapes[name].shape, lengths)
    return lengths.texts * flops


def products_per_text(
    model: ModelConfig, name: str, axes: WeightAxes, shape: tuple[int, ...], lengths: ExampleLengths
) -> float:
    """Return how many numbers are multiplied with the weights of a matrix for one text of an example."""
    tokens = uses_of_weight(model, name) * tokens_of_weight(model, name, lengths)
    return math.prod(shape) * axes.active_share * tokens


def _is_multiplied(model: ModelConfig, name: str, axes: WeightAxes) -> bool:
    """Return whether tokens are multiplied with the array: a layer's weight, or an embedding tied to the output."""
    is_encoder_table = model.decoder_embedding == "separate" and name.startswith("tokens.")
    is_output_embedding = axes.is_table and "vocab" in axes.names and model.tied and not is_encoder_table
    is_of_layer = axes.inputs > 0 and ".positions." not in name
    return is_of_layer or is_output_embedding


def _flops_per_weight(shape: tuple[int, ...], first_trained: int | None, *, has_backward_pass: bool) -> float:
    """Return 2 for the forward pass, 2 for the gradient of the input, and 2 for that of the trained repeats."""
    flops = 2.0
    if has_backward_pass:
        flops += 2.0
    if first_trained is not None:
        flops += 2.0 * (1 - first_trained / max(shape[0], 1))
    return flops


@dataclass(frozen=True)
class _StackShape:
    """A stack of layers, and what it reads of a text.

    Attributes:
        model: whose pattern the layers repeat.
        layers: number of them.
        tokens: length of the text.
        causal: tokens attend to earlier ones alone.
        streams: queries per token; more than 1 in two-stream attention.
    """

    model: ModelConfig
    layers: int
    tokens: int
    causal: bool
    streams: float = 1.0


def _stacks(model: ModelConfig, lengths: ExampleLengths) -> list[_StackShape]:
    if model.family == "electra":
        return [*_stacks(model.discriminator_model, lengths), *_stacks(model.generator_model, lengths)]
    streams = 1 + lengths.query_stream / lengths.tokens
    stacks = [_StackShape(model, model.layers, lengths.tokens, causal=model.family == "decoder", streams=streams)]
    if model.family == "encoder_decoder":
        stacks.append(_StackShape(model.decoder_model, model.decoder_layers, lengths.targets, causal=True))
    return stacks


def attention_flops_per_text(model: ModelConfig, lengths: ExampleLengths, *, causal_half: bool) -> float:
    """Return the FLOPs, forward and backward, of the scores of attention and of the sums of values."""
    flops = sum(_self_attention_flops(stack, causal_half=causal_half) for stack in _stacks(model, lengths))
    if model.family == "encoder_decoder":
        pairs = model.decoder_layers * lengths.targets * lengths.tokens
        flops += ATTENTION_FLOPS * model.heads * model.head_dim * pairs
    return flops


def _self_attention_flops(stack: _StackShape, *, causal_half: bool) -> float:
    def channel_pairs(layer: LayerConfig) -> float:
        """Return pairs of positions times channels of a head, of which values may have others than queries."""
        if not isinstance(layer.mixer, SelfAttention):
            return 0.0
        pairs = layer.attention.pairs(stack.tokens, causal=stack.causal and causal_half)
        return _channels_of_pair(stack.model, layer.mixer) * pairs

    flops_per_channel = ATTENTION_FLOPS * stack.model.heads * stack.streams
    return flops_per_channel * stack.layers * stack.model.mean_over_layers(channel_pairs)


def _channels_of_pair(model: ModelConfig, mixer: SelfAttention) -> float:
    """Return the width of a product for a pair of positions, of which attention without a bias has two a head."""
    key_dim = mixer.key_dim(model)
    return (key_dim + mixer.value_dim(model) + model.positions.bias_products * key_dim) / 2


def _memory_flops(model: ModelConfig, lengths: ExampleLengths) -> float:
    """Return the FLOPs of keys and values of a memory, which need no gradient of their input, and of pairs with it."""

    def of_layer(layer: LayerConfig) -> float:
        if not isinstance(layer.mixer, SelfAttention) or not layer.mixer.memory:
            return 0.0
        memory = layer.mixer.memory
        all_pairs = layer.attention.pairs(memory + lengths.tokens, causal=False)
        for part in (memory, lengths.tokens):
            all_pairs -= layer.attention.pairs(part, causal=False)
        pair_flops = ATTENTION_FLOPS * model.heads * _channels_of_pair(model, layer.mixer) * all_pairs / 2
        widths = layer.mixer.key_dim(model) + layer.mixer.value_dim(model)
        return pair_flops + 4.0 * memory * model.embed * model.kv_heads * widths

    return model.layers * model.mean_over_layers(of_layer)


def _scan_flops(model: ModelConfig, lengths: ExampleLengths) -> float:
    """Return the FLOPs, forward and backward, of mixers other than attention beside their matrices."""
    forward_flops = 0.0
    for stack in _stacks(model, lengths):
        forward_flops += (
            stack.layers * stack.tokens * stack.model.mean_over_layers(partial(_layer_scan_flops, stack.model))
        )
    return 3 * forward_flops


def _layer_scan_flops(model: ModelConfig, layer: LayerConfig) -> float:
    return layer.mixer.scan_flops(model) if isinstance(layer.mixer, StateMixer) else 0.0
