"""The train step: a pure function of state and batch."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from t5x_lite.models.experts.routing import Routing
from t5x_lite.models.losses import TokenLoss
from t5x_lite.train.state import TrainState

Batch = Mapping[str, Array]
Sums = Mapping[str, TokenLoss | Routing]
"""Sums over a batch by term; the weights of the term `x` are the batch's `x_weights`, or 1 for each microbatch."""
LossFunction = Callable[[Any, Batch, PRNGKeyArray | None], Sums]
"""Parameters, batch and dropout key (None in evaluation) to sums over the batch's targets."""
PartsLossFunction = Callable[[Any, Any, Batch, PRNGKeyArray], Sums]
"""The same of parameters that train and of frozen ones."""


def train_step(
    loss_function: PartsLossFunction,
    optimizer: optax.GradientTransformation,
    microbatches: int,
    seed: int,
    state: TrainState,
    batch: Batch,
) -> tuple[TrainState, dict[str, Array]]:
    """One update: the mean loss over all targets of the batch (the sum of means of several terms), its gradient, the
    optimizer.

    Microbatches are summed before the division by the whole batch's number of targets, so that their number
    changes rounding alone. An update with a non-finite loss or gradient is skipped and counted.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    weights = {
        name.removesuffix("_weights"): jnp.maximum(value.sum(), 1.0)
        for name, value in batch.items()
        if name.endswith("_weights")
    }

    def mean_loss(params: Any, part: Batch, key: PRNGKeyArray) -> tuple[Array, Sums]:
        sums = loss_function(params, state.frozen, part, key)
        return reduce(add, (term.total / weights.get(name, microbatches) for name, term in sums.items())), sums

    gradient = jax.grad(mean_loss, has_aux=True)
    if microbatches == 1:
        grads, sums = gradient(state.params, batch, key)
    else:
        grads, sums = _accumulate(gradient, state.params, batch, jax.random.split(key, microbatches))

    grad_norm = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if isinstance(router := sums.get("router"), Routing):
        params = router.rebalanced(params)
    finite = reduce(jnp.logical_and, (jnp.isfinite(term.total) for term in sums.values()), jnp.isfinite(grad_norm))
    params, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), (params, opt_state), (state.params, state.opt_state)
    )
    bad = jnp.where(finite, 0, 1)
    new = replace(
        state,
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        skipped=state.skipped + bad,
        skipped_in_a_row=(state.skipped_in_a_row + 1) * bad,
    )
    metrics = means(sums) | {
        "grad_norm": grad_norm,
        "skipped": new.skipped,
        "skipped_in_a_row": new.skipped_in_a_row,
    }
    return new, metrics


def _accumulate(gradient: Callable[..., Any], params: Any, batch: Batch, keys: PRNGKeyArray) -> tuple[Any, Sums]:
    """Gradients and sums over the microbatches, one at a time; rows are dealt out so that every shard keeps its own."""
    parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, len(keys), *x.shape[1:]), 1, 0), dict(batch))
    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], parts), keys[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(so_far: Any, part: tuple[Batch, PRNGKeyArray]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, so_far, gradient(params, *part)), None

    return jax.lax.scan(add, zeros, (parts, keys))[0]


def means(sums: Sums) -> dict[str, Array]:
    """What each term says of itself; see their `means`."""
    return {key: value for name, term in sums.items() for key, value in term.means(name).items()}
