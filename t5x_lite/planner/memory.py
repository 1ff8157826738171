"""Memory of a train step by formula, for devices that no compiler is available for."""

import math

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.feedforward.config import GLU, NoFeedForward
from t5x_lite.models.losses import logits_limit
from t5x_lite.models.spec import ModelSpec
from t5x_lite.parallel.mesh import shard_bytes
from t5x_lite.planner.figures import MemoryFigures
from t5x_lite.planner.workload import Workload
from t5x_lite.train.state import TrainState
from t5x_lite.trees import flatten_names


def modelled_memory(workload: Workload, state: TrainState, platform: str) -> MemoryFigures:
    """Estimate the bytes that one device holds.

    State and gradients are exact. Activations are what `model.remat` saves of each layer, all activations of one layer,
    and two arrays of logits: those that are computed at once, and their gradient.

    Args:
        workload: the train step.
        state: shapes and shardings of the train state.
        platform: platform of the devices to plan for.
    """
    model = workload.config.model
    tensor_shards = workload.mesh.shape["tensor"]
    activation_bytes = workload.tokens_per_device * workload.bytes_per_activation
    mixer_values = _mixer_values(workload.spec) / model.layers
    saved_values = workload.layers_per_device * _saved_per_token(model, mixer_values, tensor_shards)
    layer_values = _activations_per_token(model, mixer_values, tensor_shards)
    logits_bytes = 4 * workload.tokens_per_device * (model.vocab or 1)
    logits_bytes_at_once = min(logits_limit(platform), logits_bytes)
    state_bytes = shard_bytes(state)
    gradients_bytes = shard_bytes(state.params)
    activations_bytes = activation_bytes * (saved_values + layer_values) + 2 * logits_bytes_at_once
    return {
        "state_bytes": state_bytes,
        "gradients_bytes": gradients_bytes,
        "activations_bytes": activations_bytes,
        "memory_bytes": state_bytes + gradients_bytes + activations_bytes,
    }


def _mixer_values(spec: ModelSpec) -> float:
    """Return the values per token that the products of all mixers other than attention compute."""
    values = 0.0
    shapes = flatten_names(spec.shapes)
    for name, axes in flatten_names(spec.axes).items():
        if axes.inputs and ".mixer." in name:
            shape = shapes[name].shape
            first_input = axes.stack_depth(shapes[name])
            values += math.prod(shape) / math.prod(shape[first_input : first_input + axes.inputs])
    return values


def _products_per_token(model: ModelConfig, mixer_values: float, tensor_shards: int) -> float:
    """Return the values per token that the matrix products of a layer compute, the mean over the pattern."""
    attention_share = 1 - len(model.state_mixers) / len(model.period)
    head_values = (2 * model.heads + 2 * model.kv_heads) * model.head_dim
    matrices_into_mlp = 2 if isinstance(model.dense_feedforward, GLU) else 1
    mlp_values = matrices_into_mlp * _mlp(model)
    return (attention_share * head_values + mixer_values + mlp_values + 2 * model.embed) / tensor_shards


def _mlp(model: ModelConfig) -> float:
    """Return the inner width of the feed-forward, the mean over the pattern."""
    absent = [isinstance(model.feedforward_of(layer), NoFeedForward) for layer in model.period]
    return model.mlp * (1 - sum(absent) / len(absent))


def _activations_per_token(model: ModelConfig, mixer_values: float, tensor_shards: int) -> float:
    """Return the values per token of all activations of one layer."""
    products = _products_per_token(model, mixer_values, tensor_shards)
    return products + (_mlp(model) + 2 * model.embed) / tensor_shards + 2 * model.embed


def _saved_per_token(model: ModelConfig, mixer_values: float, tensor_shards: int) -> float:
    """Return the values per token and layer that `model.remat` saves for the backward pass."""
    match model.remat:
        case "none":
            return _activations_per_token(model, mixer_values, tensor_shards)
        case "full":
            return model.embed / tensor_shards
        case "offload":
            return 0.0  # host memory holds them
        case _:
            return _products_per_token(model, mixer_values, tensor_shards) + model.embed / tensor_shards
