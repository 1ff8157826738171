"""The updates of a step of policy optimisation: a pure function of state, prompts, sampled answers and rewards."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from t5x_lite.models.loss_terms import Batch
from t5x_lite.models.sharding import constrain
from t5x_lite.objectives.policy_optimization import PolicyOptimization
from t5x_lite.train.state import TrainState

UpdateStep: TypeAlias = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]
"""Maps a state and a minibatch of answers to the state after one update, and its metrics."""
PrepareAnswers: TypeAlias = Callable[[TrainState, Batch], Batch]
"""Maps a state and a batch of prompts with answers and rewards to the features of the loss, a row for each answer."""

SHUFFLE_STREAM = 2**31 - 2
"""Number of the random stream of the minibatches among those of a step."""
LAST_VALUES = ("skipped", "skipped_in_a_row")
"""Metrics of which the last update's value counts; of others it is the mean over the updates."""


def policy_step(
    objective: PolicyOptimization,
    prepare: PrepareAnswers,
    update_step: UpdateStep,
    seed: int,
    state: TrainState,
    batch: Batch,
) -> tuple[TrainState, dict[str, Array]]:
    """Return the state after the updates on sampled answers, and the metrics of the step.

    Advantages come from the parameters before the first update. Each epoch deals the answers out to the minibatches
    anew. A step counts as one, however many updates it has.
    """
    rows = prepare(state, batch)
    metrics = _answer_metrics(batch["rewards"], rows["answer_weights"])
    first_step = state.step
    updates = objective.updates_per_step
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), first_step), SHUFFLE_STREAM)
    minibatches = _deal_rows(key, len(rows["answer"]), objective)

    def update(state: TrainState, number_and_rows: tuple[Array, Array]) -> tuple[TrainState, dict[str, Array]]:
        number, selected = number_and_rows
        # Each update has random streams of its own.
        state = replace(state, step=first_step * updates + number)
        return update_step(state, _select_rows(rows, selected, full_batch=objective.minibatches == 1))

    state, values = jax.lax.scan(update, state, (jnp.arange(updates), minibatches))
    for name, value in values.items():
        metrics[name] = value[-1] if name in LAST_VALUES else value.mean(0)
    return replace(state, step=first_step + 1), metrics


def _answer_metrics(rewards: Float[Array, "b group"], weights: Float[Array, "n t"]) -> dict[str, Array]:
    return {
        "reward": rewards.mean(),
        "reward_deviation": rewards.std(),
        "answer_length": weights.sum(1).mean(),
    }


def _deal_rows(key: PRNGKeyArray, rows: int, objective: PolicyOptimization) -> Int[Array, "updates _"]:
    """Return the rows of the minibatch of each update."""
    orders = []
    for epoch in range(objective.epochs):
        orders.append(jax.random.permutation(jax.random.fold_in(key, epoch), rows))
    return jnp.stack(orders).reshape(objective.updates_per_step, rows // objective.minibatches)


def _select_rows(rows: Batch, selected: Int[Array, "_"], *, full_batch: bool) -> Batch:
    """Return some of the rows; all of them as they are, if a minibatch is the `full_batch`."""
    if full_batch:
        return rows
    minibatch = {}
    for name, array in rows.items():
        minibatch[name] = constrain(array[selected], "batch", *[None] * (array.ndim - 1))
    return minibatch
