"""Averages of the weights over the end of a run, begun when the loss no longer falls (Merity et al. 2018, §4)."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree


class AverageState(NamedTuple):
    """The losses so far, and the number of weights in the average.

    Attributes:
        steps: updates since the last comparison.
        total: sum of their losses.
        recent: mean losses of the last `patience` intervals, the oldest first.
        best: the lowest mean loss of the intervals before those.
        averaged: weights in the average; 0 until it begins.
    """

    steps: Int[Array, ""]
    total: Float[Array, ""]
    recent: Float[Array, "patience"]
    best: Float[Array, ""]
    averaged: Int[Array, ""]


@dataclass(frozen=True)
class NonMonotonicAverage:
    """An average that begins once the loss of an interval is above the lowest of all but the last `patience` ones.

    Merity et al. 2018, Algorithm 1, which compares losses of the validation split.

    Attributes:
        interval: updates between two comparisons, L.
        patience: intervals that are not compared with, n.
    """

    interval: int
    patience: int

    def init(self) -> AverageState:
        """Return the state before the first update."""
        zero = jnp.zeros((), jnp.int32)
        infinite = jnp.array(jnp.inf, jnp.float32)
        return AverageState(zero, jnp.zeros(()), jnp.full(self.patience, jnp.inf), infinite, zero)

    def update(
        self, average: PyTree, iterate: PyTree, state: AverageState, loss: Float[Array, ""]
    ) -> tuple[PyTree, AverageState]:
        """Return the average after an update, which is the weights themselves before it begins.

        Args:
            average: the average before the update.
            iterate: the weights after the update.
            state: the state before it.
            loss: the loss of its batch.
        """
        steps = state.steps + 1
        total = state.total + loss
        mean = total / steps
        is_compared = steps == self.interval
        begins = is_compared & (mean > state.best)
        averaged = jnp.where((state.averaged > 0) | begins, state.averaged + 1, 0)
        share = 1.0 / jnp.maximum(averaged, 1)

        def average_one(old: Array, new: Array) -> Array:
            # The first weights of an average are taken as they are: a sum of differences would round them.
            return jnp.where(averaged > 1, old + (new - old) * share, new)

        new_average = jax.tree.map(average_one, average, iterate)
        new_state = AverageState(
            steps=jnp.where(is_compared, 0, steps),
            total=jnp.where(is_compared, 0.0, total),
            recent=jnp.where(is_compared, jnp.append(state.recent[1:], mean), state.recent),
            best=jnp.where(is_compared, jnp.minimum(state.best, state.recent[0]), state.best),
            averaged=averaged,
        )
        return new_average, new_state
