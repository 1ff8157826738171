"""Pipeline parallelism: layers in stages over a mesh axis, with microbatches that follow each other through them."""

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from t5x_lite.models.sharding import constrain, num_shards

Rows = TypeVar("Rows")
Activity = TypeVar("Activity")
RunStage = Callable[[PyTree, Float[Array, "b l d"], Rows, PRNGKeyArray | None], tuple[Float[Array, "b l d"], Activity]]
"""A function from the weights of a stage, states, inputs of their rows and dropout keys to new states and activity."""


def run_pipeline(
    run_stage: RunStage[Rows, Activity],
    weights: PyTree,
    x: Float[Array, "b l d"],
    rows: Rows,
    keys: PRNGKeyArray | None,
    microbatches: int | None,
) -> tuple[Float[Array, "b l d"], Activity]:
    """Apply layers in stages; at every tick all stages work, on consecutive microbatches (Huang et al. 2019, §2.3).

    The bubble is (stages - 1) / (microbatches + stages - 1) of the ticks. Gradients come from transposing the loop.

    Args:
        run_stage: applies the layers of one stage.
        weights: weights of all layers, with a leading axis over repeats of the pattern.
        x: states of the whole batch.
        rows: what the rows bring to every layer; a tree of arrays with a leading axis over rows.
        keys: dropout keys of all layers, with a leading axis over repeats.
        microbatches: parts of the batch; None: see `microbatch_count`.

    Returns:
        The states after all layers, and the activity with axes over repeats and rows.
    """
    stages = num_shards("layers")
    batch = x.shape[0]
    count = microbatch_count(microbatches, batch, stages)

    def split_batch(array: Array) -> Array:
        """Interleave rows over `[count, batch / count, …]`, so that every shard of the batch keeps its own."""
        interleaved = jnp.moveaxis(array.reshape(batch // count, count, *array.shape[1:]), 1, 0)
        axes: list[str | None] = [None] * (array.ndim - 1)
        if array.ndim == 3:
            axes = ["residual_length", None]
        return constrain(interleaved, None, "batch", *axes)

    def by_stage(array: Array) -> Array:
        return array.reshape(stages, -1, *array.shape[1:])

    def constrain_stages(states: Array) -> Array:
        return constrain(states, "layers", "batch", "residual_length", None)

    microbatch_states = split_batch(x)
    microbatch_rows = jax.tree.map(split_batch, rows)
    stage_weights = jax.tree.map(by_stage, weights)
    stage_keys = None
    if keys is not None:
        stage_keys = by_stage(keys)

    def run_one_stage(
        weights: PyTree, x: Array, rows: Rows, keys: PRNGKeyArray | None, microbatch: Array
    ) -> tuple[Array, Activity]:
        if keys is not None:
            fold = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, microbatch)))
            keys = fold(keys)
        return run_stage(weights, x, rows, keys)

    run_all_stages = jax.vmap(run_one_stage, spmd_axis_name="pipeline")

    def tick(states: Array, number: Array) -> tuple[Array, tuple[Array, Activity]]:
        entering = microbatch_states[jnp.minimum(number, count - 1)]
        entering = constrain(entering, "batch", "residual_length", None)
        is_first = (jnp.arange(stages) == 0)[:, None, None, None]
        states = constrain_stages(jnp.where(is_first, entering[None], jnp.roll(states, 1, axis=0)))
        microbatch = jnp.clip(number - jnp.arange(stages), 0, count - 1)
        rows_of_stages = jax.tree.map(lambda array: array[microbatch], microbatch_rows)
        states, activity = run_all_stages(stage_weights, states, rows_of_stages, stage_keys, microbatch)
        states = constrain_stages(states)
        return states, (constrain(states[-1], "batch", "residual_length", None), activity)

    empty = constrain_stages(jnp.zeros((stages, *microbatch_states.shape[1:]), x.dtype))
    _, (leaving, activity) = jax.lax.scan(tick, empty, jnp.arange(count + stages - 1))

    def activity_by_layer(array: Array) -> Array:
        """Return activity by tick, stage, layer of the stage and row as `[layers, batch, …]`."""
        by_microbatch = jnp.stack([array[n : n + count, n] for n in range(stages)])
        stage_layer_row_microbatch = jnp.moveaxis(by_microbatch, 1, 3)
        return stage_layer_row_microbatch.reshape(-1, batch, *array.shape[4:])

    states = jnp.moveaxis(leaving[stages - 1 :], 0, 1).reshape(batch, *x.shape[1:])
    return states, jax.tree.map(activity_by_layer, activity)


def microbatch_count(requested: int | None, rows: int, stages: int) -> int:
    """Return how many microbatches the rows of a batch go through the stages in.

    Without a request it is the largest number, up to four for each stage, that divides the rows of a device. A request
    is for training: batches of fewer rows, such as those of an evaluation, have the largest common divisor.
    """
    rows_of_device = _rows_of_device(rows)
    if requested is None:
        return max(n for n in range(1, 4 * stages + 1) if rows_of_device % n == 0)
    return math.gcd(requested, rows_of_device)


def check_microbatch_count(requested: int | None, rows: int) -> None:
    """Refuse a number of microbatches that does not divide the rows of a device.

    Raises:
        ValueError: with both numbers.
    """
    rows_of_device = _rows_of_device(rows)
    if requested is not None and rows_of_device % requested:
        raise ValueError(
            f"model.pipeline_microbatches {requested} does not divide the {rows_of_device} rows of a batch on a device"
        )


def _rows_of_device(rows: int) -> int:
    return max(rows // num_shards("batch"), 1)
