"""Activations of the layers by formula: their values per token, by the names under which `model.remat` keeps them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from t5x_lite.models.attention.context import BlockLimits
from t5x_lite.models.attention.kernels import fuses_cross_attention, unfused_kinds
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layer_config import LayerConfig
from t5x_lite.models.layer_path import depth_of_stack
from t5x_lite.models.layers import WeightAxes
from t5x_lite.models.mixers import SelfAttention
from t5x_lite.models.remat_policy import (
    ATTENTION_OUTPUT,
    EXCHANGED_ROWS,
    INNER_PRODUCT,
    OUTPUT_PRODUCT,
    PROJECTION,
    SAVED_NAMES,
    RematPolicy,
    product_name,
)
from t5x_lite.objectives.objective import ExampleLengths
from t5x_lite.planner.workload import Workload
from t5x_lite.train.tokens_of_weight import SECOND_MODELS, tokens_of_weight
from t5x_lite.trees import flatten_names

PRODUCTS = (PROJECTION, INNER_PRODUCT, OUTPUT_PRODUCT)
BYTES_OF_LOG_SUM = 4
BYTES_OF_SCORE = 4


@dataclass(frozen=True)
class PeriodActivations:
    """The activations of one period of the layer pattern, in values per token on one device.

    Attributes:
        named: values by the names of `models.remat_policy`.
        elementwise: the other values: outputs of activation functions, of norms and of residual additions, and the
            scores and weights of attention that no fused kernel computes.
        carry: values that pass from one period to the next.
    """

    named: Mapping[str, float]
    elementwise: float
    carry: float

    @property
    def products(self) -> float:
        """Values of all matrix products with weights."""
        return sum(self.named[name] for name in PRODUCTS)

    @property
    def every(self) -> float:
        """Values of all activations."""
        return sum(self.named.values()) + self.elementwise

    def saved(self, policy: RematPolicy) -> float:
        """Return the values of a period that a policy keeps for the backward pass in the memory of the device."""
        match policy:
            case "none":
                return self.every
            case "full":
                return self.carry
            case "offload":
                return 0.0  # host memory holds them
            case "dots":
                return self.products + self.named[ATTENTION_OUTPUT] + self.named[EXCHANGED_ROWS] + self.carry
            case "dots_no_batch":
                return self.products + self.carry
            case _:
                return sum(self.named[name] for name in SAVED_NAMES[policy]) + self.carry


def period_activations(workload: Workload, platform: str) -> PeriodActivations:
    """Count the activations of one period from the weights of the model, and its scores from their pairs.

    Each matrix gives a product of its outputs for every token that it sees. A token uses its share of the experts.
    Stacks of an encoder_decoder count by their share of the tokens. Of ELECTRA the discriminator is counted.

    Args:
        workload: the train step.
        platform: platform of the devices, which decides what fused kernels compute.
    """
    model = workload.config.model
    named: dict[str, float] = dict.fromkeys((*PRODUCTS, ATTENTION_OUTPUT), 0.0)
    inner_values = 0.0
    shapes = flatten_names(workload.spec.shapes)
    for name, axes in flatten_names(workload.spec.axes).items():
        if axes.inputs == 0 or ".stack.layers." not in name or name.startswith(("generator", *SECOND_MODELS)):
            continue
        matrix = _Matrix.of(axes, shapes[name].shape)
        matrix_count = matrix.count * _token_share(name, model, workload.lengths)
        kind = product_name(matrix.output_names)
        named[kind] += matrix_count * matrix.outputs
        if "mlp" in matrix.input_names:
            inner_values += matrix_count * matrix.inputs
        if "heads" in matrix.input_names and ".mixer." not in name:
            log_sum_values = model.heads * BYTES_OF_LOG_SUM / workload.bytes_per_activation
            named[ATTENTION_OUTPUT] += matrix_count * (matrix.inputs + log_sum_values)
    tensor_shards = workload.mesh.shape["tensor"]
    residual_values = 2 * model.embed * len(model.period)
    # The input of each sublayer has the whole length of a row; the rest is sharded over `tensor`.
    score_values = len(model.period) * _score_values(workload, platform)
    elementwise = (inner_values + residual_values + score_values) / tensor_shards + residual_values
    named = {name: values / tensor_shards for name, values in named.items()}
    named[EXCHANGED_ROWS] = 2 * workload.exchange_slots * model.embed  # `tensor` shards no tokens of experts
    return PeriodActivations(
        named=named,
        elementwise=elementwise,
        carry=model.embed / tensor_shards,
    )


def _score_values(workload: Workload, platform: str) -> float:
    """Return the values per token and layer of scores, which are float32, and of the weights that become of them.

    Rows whose scores are computed for some queries at a time keep none.
    """
    model = workload.config.model
    lengths = workload.lengths

    def kept_pairs(stack: ModelConfig, length: int, *, causal: bool) -> float:
        unfused = unfused_kinds(stack, length, platform, causal=causal)
        if length * length > BlockLimits().max_scores:
            return 0.0

        def of_layer(layer: LayerConfig) -> float:
            if not isinstance(layer.mixer, SelfAttention) or layer.attention not in unfused:
                return 0.0
            return layer.attention.pairs(length, causal=causal)

        return stack.mean_over_layers(of_layer)

    pairs = kept_pairs(model, lengths.tokens, causal=model.family == "decoder")
    tokens = lengths.tokens
    if model.family == "encoder_decoder":
        decoder = model.decoder_model
        depth = model.decoder_layers / model.layers
        pairs += depth * kept_pairs(decoder, lengths.targets, causal=True)
        if not fuses_cross_attention(model, lengths.targets, platform):
            pairs += depth * lengths.targets * lengths.tokens
        tokens += lengths.targets
    width = workload.bytes_per_activation
    return model.heads * pairs / tokens * (BYTES_OF_SCORE + width) / width


@dataclass(frozen=True)
class _Matrix:
    """A matrix of a layer: the names and the sizes of its inputs and outputs, and how many of it a token uses."""

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    inputs: int
    outputs: int
    count: float

    @classmethod
    def of(cls, axes: WeightAxes, shape: tuple[int, ...]) -> "_Matrix":
        """Return the matrix of a weight; the layers that are stacked before its axes do not count."""
        shape = shape[len(shape) - len(axes.names) :]
        first_output = axes.stacked + axes.inputs
        return cls(
            input_names=axes.names[axes.stacked : first_output],
            output_names=axes.names[first_output:],
            inputs=math.prod(shape[axes.stacked : first_output]),
            outputs=math.prod(shape[first_output:]),
            count=axes.active_share * math.prod(shape[: axes.stacked]),
        )


def _token_share(name: str, model: ModelConfig, lengths: ExampleLengths) -> float:
    """Return the share of an example's tokens that a weight of an encoder_decoder sees, times its relative depth."""
    if model.family != "encoder_decoder":
        return 1.0
    depth = depth_of_stack(model, name) / model.layers
    return depth * tokens_of_weight(model, name, lengths) / (lengths.tokens + lengths.targets)
