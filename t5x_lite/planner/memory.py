"""Memory of a train step by formula, for devices that no compiler is available for."""

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.feedforward.config import GLU
from t5x_lite.models.losses import logits_limit
from t5x_lite.parallel.mesh import shard_bytes
from t5x_lite.planner.figures import MemoryFigures
from t5x_lite.planner.workload import Workload
from t5x_lite.train.state import TrainState


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
    saved_values = workload.layers_per_device * _saved_per_token(model, tensor_shards)
    layer_values = _activations_per_token(model, tensor_shards)
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


def _products_per_token(model: ModelConfig, tensor_shards: int) -> float:
    """Return the values per token that the matrix products of one layer compute."""
    head_values = (2 * model.heads + 2 * model.kv_heads) * model.head_dim
    matrices_into_mlp = 2 if isinstance(model.dense_feedforward, GLU) else 1
    mlp_values = matrices_into_mlp * model.mlp
    return (head_values + mlp_values + 2 * model.embed) / tensor_shards


def _activations_per_token(model: ModelConfig, tensor_shards: int) -> float:
    """Return the values per token of all activations of one layer."""
    products = _products_per_token(model, tensor_shards)
    return products + (model.mlp + 2 * model.embed) / tensor_shards + 2 * model.embed


def _saved_per_token(model: ModelConfig, tensor_shards: int) -> float:
    """Return the values per token and layer that `model.remat` saves for the backward pass."""
    match model.remat:
        case "none":
            return _activations_per_token(model, tensor_shards)
        case "full":
            return model.embed / tensor_shards
        case "offload":
            return 0.0  # host memory holds them
        case _:
            return _products_per_token(model, tensor_shards) + model.embed / tensor_shards
