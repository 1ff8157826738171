"""The train step: a pure function of state and batch."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key, PRNGKeyArray, PyTree

from t5x_lite.models.experts.activity import ROUTER_TERM, RouterLoss
from t5x_lite.models.loss_terms import Batch, LossTerms, loss_metrics
from t5x_lite.models.sharding import sum_over
from t5x_lite.train.masks import apply_masks
from t5x_lite.train.parameter_update import ParameterUpdate
from t5x_lite.train.state import TrainState
from t5x_lite.train.training_loss import TrainingLoss

GradientFunction: TypeAlias = Callable[[PyTree, Batch, PRNGKeyArray], tuple[PyTree, tuple[LossTerms, PyTree]]]
"""Maps the trained parameters, a microbatch and its dropout key to gradients, terms of the loss and carried states."""

ROUNDING_STREAM = 2**31 - 1
"""Number of the random stream of stochastic rounding among those of a step."""


@dataclass(frozen=True)
class Replicas:
    """Parts of a batch on the mesh axis `data` that each have microbatches of their own.

    Attributes:
        count: size of the axis.
        sent_dtypes: for every parameter, the type in which the sums of gradients are sent.
    """

    count: int
    sent_dtypes: PyTree[DTypeLike]


@dataclass(frozen=True)
class Accumulation:
    """The way in which the gradients of a batch are added up.

    Attributes:
        microbatches: parts of the batch that are computed one after the other.
        dtype: type of the sum of their gradients.
        replicas: how the replicas along the mesh axis `data` sum their gradients once in a step; None: the compiler
            sums those of every microbatch.
    """

    microbatches: int
    dtype: DTypeLike = jnp.float32
    replicas: Replicas | None = None

    @property
    def parts(self) -> int:
        """Parts of the batch, each with a loss and dropout of its own."""
        return self.microbatches * (1 if self.replicas is None else self.replicas.count)


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
    if accumulation.parts == 1:
        grads, (terms, carry) = gradient(point, batch, key)
    else:
        keys = jax.random.split(key, accumulation.parts)
        accumulate = _accumulate if accumulation.replicas is None else _accumulate_in_replicas
        grads, (terms, carry) = accumulate(gradient, accumulation, point, batch, keys)

    grads = apply_masks(_convert(grads, jnp.float32), state.masks)
    grad_norm = optax.tree.norm(grads)
    router = terms.get(ROUTER_TERM)

    def adjust(params: PyTree) -> PyTree:
        if isinstance(router, RouterLoss):
            params = router.update_biases(params)
        return apply_masks(params, state.masks)

    rounding_key = jax.random.fold_in(key, ROUNDING_STREAM)
    params, opt_state = update.apply(
        grads, state.params, state.opt_state, rounding_key, adjust, loss.mean(terms, normalisers)
    )

    is_finite = _is_finite(terms, grad_norm)
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


def _is_finite(terms: LossTerms, grad_norm: Float[Array, ""]) -> Bool[Array, ""]:
    is_finite = jnp.isfinite(grad_norm)
    for term in terms.values():
        is_finite = jnp.logical_and(is_finite, jnp.isfinite(term.total))
    return is_finite


def _convert(grads: PyTree, dtype: DTypeLike) -> PyTree:
    return jax.tree.map(lambda grad: grad.astype(dtype), grads)


def _accumulate(
    gradient: GradientFunction,
    accumulation: Accumulation,
    params: PyTree,
    batch: Batch,
    keys: Key[Array, "microbatches"],
) -> tuple[PyTree, tuple[LossTerms, PyTree]]:
    """Return gradients and loss terms added up over the microbatches, computed one at a time."""
    # Recurrent states are not carried from batch to batch: those need one part.
    microbatches = {name: _split_rows(array, len(keys)) for name, array in batch.items()}

    def converted_gradient(microbatch: Batch, key: PRNGKeyArray) -> tuple[PyTree, tuple[LossTerms, PyTree]]:
        grads, outputs = gradient(params, microbatch, key)
        return _convert(grads, accumulation.dtype), outputs

    first = {name: array[0] for name, array in microbatches.items()}
    shapes = jax.eval_shape(converted_gradient, first, keys[0])
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)

    def add_microbatch(totals: PyTree, microbatch_and_key: tuple[Batch, PRNGKeyArray]) -> tuple[PyTree, None]:
        microbatch, key = microbatch_and_key
        return jax.tree.map(jnp.add, totals, converted_gradient(microbatch, key)), None

    totals, _ = jax.lax.scan(add_microbatch, zeros, (microbatches, keys))
    return totals


def _accumulate_in_replicas(
    gradient: GradientFunction,
    accumulation: Accumulation,
    params: PyTree,
    batch: Batch,
    keys: Key[Array, "parts"],
) -> tuple[PyTree, tuple[LossTerms, PyTree]]:
    """Return what `_accumulate` returns; the replicas along the mesh axis `data` add up theirs once, at the end.

    The compiler sums the gradients of one program over all rows in every microbatch.
    """
    replicas = accumulation.replicas
    assert replicas is not None

    def accumulate_and_sum(
        params: PyTree, batch: Batch, keys: Key[Array, "microbatches"]
    ) -> tuple[PyTree, tuple[LossTerms, PyTree]]:
        grads, outputs = _accumulate(gradient, accumulation, params, batch, keys)
        sent = jax.tree.map(lambda grad, dtype: grad.astype(dtype), grads, replicas.sent_dtypes)
        return sum_over((sent, outputs), "data")

    rows = PartitionSpec("data")
    replicated = PartitionSpec()
    accumulate = jax.shard_map(
        accumulate_and_sum,
        in_specs=(replicated, rows, rows),
        out_specs=replicated,
        axis_names={"data"},
        check_vma=False,
    )
    return accumulate(params, batch, keys)


def _split_rows(array: Array, microbatches: int) -> Array:
    """Deal the rows out to the microbatches, so that every device keeps its own rows: `[microbatches, rows, ...]`."""
    rows = array.reshape(-1, microbatches, *array.shape[1:])
    return jnp.moveaxis(rows, 1, 0)
