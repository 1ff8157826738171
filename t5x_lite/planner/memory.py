"""Memory of a train step by formula, for devices that no compiler is available for."""

import jax

from t5x_lite.models.losses import logits_limit
from t5x_lite.parallel.mesh import shard_bytes
from t5x_lite.planner.activations import period_activations
from t5x_lite.planner.figures import MemoryFigures
from t5x_lite.planner.workload import Workload
from t5x_lite.train.state import TrainState

COMPILED_ACTIVATIONS = 2.5
"""Compiled memory of activations over that by formula: 1.4 to 2.7 in 17 of 18 configs that libtpu compiled for pods,
with a median of 2.2 (docs/results/plans.md). It has gradients, gathered weights and copies too."""


def modelled_memory(workload: Workload, state: TrainState, platform: str) -> MemoryFigures:
    """Estimate the bytes that one device holds.

    State and gradients are exact. Activations are what `model.remat` saves of each period of the layer pattern, all
    activations of one period, which the backward pass computes again together, and two arrays of logits: those that are
    computed at once, and their gradient. Without rematerialisation the backward pass adds those of one layer.

    Args:
        workload: the train step.
        state: shapes and shardings of the train state.
        platform: platform of the devices to plan for.
    """
    model = workload.config.model
    activation_bytes = workload.tokens_per_device * workload.bytes_per_activation
    period = period_activations(workload, platform)
    layers_of_period = len(model.period)
    saved_values = workload.layers_per_device / layers_of_period * period.saved(model.remat)
    working_values = period.every
    if model.remat == "none":
        working_values /= layers_of_period
    logits_bytes = 4 * workload.tokens_per_device * (model.vocab or 1)
    logits_bytes_at_once = min(logits_limit(platform), logits_bytes)
    state_bytes = shard_bytes(state)
    gradients_bytes = _gradient_bytes(workload, state)
    activations_bytes = activation_bytes * (saved_values + working_values) + 2 * logits_bytes_at_once
    return {
        "state_bytes": state_bytes,
        "gradients_bytes": gradients_bytes,
        "activations_bytes": activations_bytes,
        "memory_bytes": state_bytes + gradients_bytes + activations_bytes,
    }


def cautious_bytes(memory: MemoryFigures) -> float:
    """Return the bytes that the compiled step of a pod takes at most, as far as the formulas can tell."""
    return memory["state_bytes"] + memory["gradients_bytes"] + COMPILED_ACTIVATIONS * memory["activations_bytes"]


def _gradient_bytes(workload: Workload, state: TrainState) -> float:
    """Return the bytes of the gradients: in the types of the parameters, or of the sums of microbatches."""
    gradients = state.params
    train = workload.config.train
    if train.microbatches > 1 or (train.data_reduction == "step" and workload.mesh.shape["data"] > 1):
        gradients = jax.tree.map(lambda param: param.update(dtype=train.gradient_dtype), gradients)
    return shard_bytes(gradients)
