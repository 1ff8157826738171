"""The train step: a pure function of state and batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key, PRNGKeyArray, PyTree

from t5x_lite.models.experts.activity import ROUTER_TERM, RouterLoss
from t5x_lite.models.losses import TokenLoss
from t5x_lite.train.state import TrainState

Batch: TypeAlias = Mapping[str, Array]
Sums: TypeAlias = Mapping[str, TokenLoss | RouterLoss]
"""Sums over a batch by term of the loss."""
LossFunction: TypeAlias = Callable[[PyTree, Batch, PRNGKeyArray | None], Sums]
"""Maps parameters, a batch and a dropout key (None in evaluation) to the sums over the batch."""
PartsLossFunction: TypeAlias = Callable[[PyTree, PyTree, Batch, PRNGKeyArray], Sums]
"""The same, with the trained and the frozen parameters apart."""
GradientFunction: TypeAlias = Callable[[PyTree, Batch, PRNGKeyArray], tuple[PyTree, Sums]]
"""Maps the trained parameters, a microbatch and its dropout key to gradients and sums."""


@dataclass(frozen=True)
class TrainingLoss:
    """The loss that a run minimises: the sum of the means of its terms.

    Attributes:
        objective: name of the objective, for error messages.
        sums: computes the sum of every term over a microbatch.
        term_weights: for every term, the feature of the batch that holds its weights (`Objective.term_weights`), or
            None if the term is a mean over the microbatch already (`activity.ROUTER_TERM_WEIGHTS`).
    """

    objective: str
    sums: PartsLossFunction
    term_weights: Mapping[str, str | None]

    def normalisers(self, batch: Batch, microbatches: int) -> dict[str, Float[Array, ""] | int]:
        """Return the divisor of each term: the sum of its weights over the whole batch, or the number of microbatches.

        Raises:
            ValueError: the batch lacks a declared feature.
        """
        normalisers: dict[str, Array | int] = {}
        for term, feature in self.term_weights.items():
            if feature is None:
                normalisers[term] = microbatches
            elif feature in batch:
                normalisers[term] = jnp.maximum(batch[feature].sum(), 1.0)
            else:
                raise ValueError(
                    f"objective {self.objective}: the loss term {term!r} takes its weights from the feature "
                    f"{feature!r}, but the batch has only {', '.join(sorted(batch))}"
                )
        return normalisers

    def mean(self, sums: Sums, normalisers: Mapping[str, Float[Array, ""] | int]) -> Float[Array, ""]:
        """Return the sum of the means of all terms.

        Raises:
            ValueError: a term whose weights are not declared.
        """
        means = []
        for term, term_sums in sums.items():
            if term not in normalisers:
                raise ValueError(
                    f"objective {self.objective}: the weights of the loss term {term!r} are not declared; add the "
                    "term to the objective's `term_weights`"
                )
            means.append(term_sums.total / normalisers[term])
        return reduce(add, means)


def train_step(
    loss: TrainingLoss,
    optimizer: optax.GradientTransformation,
    microbatches: int,
    seed: int,
    state: TrainState,
    batch: Batch,
) -> tuple[TrainState, dict[str, Array]]:
    """Return the state after one update, and the metrics of the update.

    Each term of the loss is a mean over all its targets in the batch. Microbatches are summed before the division by
    the number of targets in the whole batch, so that the number of microbatches changes only rounding. An update whose
    loss or gradient is not finite is skipped and counted.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    normalisers = loss.normalisers(batch, microbatches)

    def mean_loss(params: PyTree, microbatch: Batch, key: PRNGKeyArray) -> tuple[Float[Array, ""], Sums]:
        sums = loss.sums(params, state.frozen, microbatch, key)
        return loss.mean(sums, normalisers), sums

    gradient = jax.grad(mean_loss, has_aux=True)
    if microbatches == 1:
        grads, sums = gradient(state.params, batch, key)
    else:
        grads, sums = _accumulate(gradient, state.params, batch, jax.random.split(key, microbatches))

    grad_norm = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    router = sums.get(ROUTER_TERM)
    if isinstance(router, RouterLoss):
        params = router.update_biases(params)

    is_finite = _is_finite(sums, grad_norm)
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(is_finite, new, old), (params, opt_state), (state.params, state.opt_state)
    )
    skipped = jnp.where(is_finite, 0, 1)
    new_state = replace(
        state,
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        skipped=state.skipped + skipped,
        skipped_in_a_row=(state.skipped_in_a_row + 1) * skipped,
    )
    metrics = {
        **means(sums),
        "grad_norm": grad_norm,
        "skipped": new_state.skipped,
        "skipped_in_a_row": new_state.skipped_in_a_row,
    }
    return new_state, metrics


def means(sums: Sums) -> dict[str, Array]:
    """Return the metrics of all terms."""
    metrics: dict[str, Array] = {}
    for name, term in sums.items():
        metrics.update(term.means(name))
    return metrics


def _is_finite(sums: Sums, grad_norm: Float[Array, ""]) -> Bool[Array, ""]:
    is_finite = jnp.isfinite(grad_norm)
    for term in sums.values():
        is_finite = jnp.logical_and(is_finite, jnp.isfinite(term.total))
    return is_finite


def _accumulate(
    gradient: GradientFunction, params: PyTree, batch: Batch, keys: Key[Array, "microbatches"]
) -> tuple[PyTree, Sums]:
    """Return gradients and sums added up over the microbatches, which are computed one at a time."""
    microbatches = {name: _split_rows(array, len(keys)) for name, array in batch.items()}
    first = {name: array[0] for name, array in microbatches.items()}
    shapes = jax.eval_shape(gradient, params, first, keys[0])
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)

    def add_microbatch(
        totals: tuple[PyTree, Sums], microbatch_and_key: tuple[Batch, PRNGKeyArray]
    ) -> tuple[tuple[PyTree, Sums], None]:
        return jax.tree.map(jnp.add, totals, gradient(params, *microbatch_and_key)), None

    totals, _ = jax.lax.scan(add_microbatch, zeros, (microbatches, keys))
    return totals


def _split_rows(array: Array, microbatches: int) -> Array:
    """Deal the rows out to the microbatches, so that every device keeps its own rows: `[microbatches, rows, ...]`."""
    rows = array.reshape(-1, microbatches, *array.shape[1:])
    return jnp.moveaxis(rows, 1, 0)
