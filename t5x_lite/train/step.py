"""The train step: a pure function of state and batch."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from t5x_lite.models.experts.activity import update_router_biases
from t5x_lite.models.loss_terms import Batch, LossTerms, are_finite, loss_metrics
from t5x_lite.train.accumulation import Accumulation, accumulated_gradient
from t5x_lite.train.masks import apply_masks
from t5x_lite.train.parameter_update import ParameterUpdate
from t5x_lite.train.state import TrainState
from t5x_lite.train.training_loss import TrainingLoss

ROUNDING_STREAM = 2**31 - 1
"""Number of the random stream of stochastic rounding among those of a step."""


def train_step(
    loss: TrainingLoss,
    update: ParameterUpdate,
    accumulation: Accumulation,
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
    normalisers = loss.normalisers(batch, accumulation.parts)

    def mean_loss(
        params: PyTree, microbatch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], tuple[LossTerms, PyTree]]:
        terms, carry = loss.loss_terms(params, state, microbatch, key)
        return loss.mean(terms, normalisers), (terms, carry)

    gradient = jax.grad(mean_loss, has_aux=True)
    point = apply_masks(update.gradient_point(state.params, state.opt_state), state.masks)
    grads, (terms, carry) = accumulated_gradient(gradient, accumulation, point, batch, key)
    grads = apply_masks(grads, state.masks)
    grad_norm = optax.tree.norm(grads)

    def adjust(params: PyTree) -> PyTree:
        return apply_masks(update_router_biases(params, terms), state.masks)

    rounding_key = jax.random.fold_in(key, ROUNDING_STREAM)
    params, opt_state = update.apply(
        grads, state.params, state.opt_state, rounding_key, adjust, loss.mean(terms, normalisers)
    )

    is_finite = jnp.logical_and(jnp.isfinite(grad_norm), are_finite(terms))
    params, opt_state, carry = jax.tree.map(
        lambda new, old: jnp.where(is_finite, new, old),
        (params, opt_state, carry),
        (state.params, state.opt_state, state.carry),
    )
    skipped = jnp.where(is_finite, 0, 1)
    new_state = replace(
        state,
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        skipped=state.skipped + skipped,
        skipped_in_a_row=(state.skipped_in_a_row + 1) * skipped,
        carry=carry,
    )
    metrics = {
        **loss_metrics(terms),
        "grad_norm": grad_norm,
        "skipped": new_state.skipped,
        "skipped_in_a_row": new_state.skipped_in_a_row,
    }
    return new_state, metrics
