"""The optimizer of a run: clipping, the algorithm with weight decay, and the learning rate."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from t5x_lite.models.layers import WeightAxes
from t5x_lite.train.config import OptimizerConfig
from t5x_lite.train.rounding import store_moments_in_bfloat16
from t5x_lite.train.schedules.schedule import Horizon

LearningRateFactors: TypeAlias = Callable[[Float[Array, ""], PyTree], PyTree]
"""Maps the share of the run that is done, and a tree of arrays, to a factor on the learning rate of each array."""


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Return the learning rate as a function of the number of updates done, 0 for the first.

    Update s of the warm-up has the rate peak * (s + 1) / warmup_steps. The schedule then runs to the last update.
    """
    horizon = Horizon(steps, config.warmup_steps)

    def learning_rate(count: ArrayLike) -> Float[Array, "..."]:
        count = jnp.asarray(count, jnp.float32)
        warmup_factor = (count + 1) / max(config.warmup_steps, 1)
        factor = config.schedule.factor(count, horizon)
        return config.learning_rate * jnp.where(count < config.warmup_steps, warmup_factor, factor)

    return learning_rate


def make_optimizer(
    config: OptimizerConfig, steps: int, axes: PyTree[WeightAxes], updates_per_step: int = 1
) -> optax.GradientTransformation:
    """Return the optimizer.

    Args:
        config: the algorithm and its settings.
        steps: steps of the whole run, for the schedule.
        axes: a `WeightAxes` for each parameter, in the shape of the parameters.
        updates_per_step: updates in a step, which have the same learning rate.
    """
    schedule = make_schedule(config, steps)

    def learning_rate(update: ArrayLike) -> Float[Array, "..."]:
        return schedule(jnp.asarray(update) // updates_per_step)

    def is_decayed(axes: WeightAxes) -> bool:
        return axes.inputs > 0 or (axes.is_table and config.decay_embeddings)

    weight_decay = optax.add_decayed_weights(config.weight_decay, jax.tree.map(is_decayed, axes))
    transformations = config.method.transformations(axes, weight_decay)
    if config.moment_dtype == "bfloat16":
        transformations = [store_moments_in_bfloat16(optax.chain(*transformations))]
    if config.clip_norm is not None:
        transformations = [optax.clip_by_global_norm(config.clip_norm), *transformations]
    return optax.chain(*transformations, optax.scale_by_learning_rate(learning_rate))


def scale_learning_rates(
    inner: optax.GradientTransformation, steps: int, factors: LearningRateFactors
) -> optax.GradientTransformation:
    """Multiply the learning rate of each parameter by a factor that changes during the run.

    While its factor is 0, a parameter stays as it is, and its moments follow its gradients. With moments of 0 and a
    count of updates that is not, Adam's first update would be sqrt(1 / (1 - b2)) * (1 - b1) times the rate, 3.2 of it.

    Args:
        inner: the optimizer.
        steps: updates of the whole run.
        factors: the factors. One with leading axes holds a factor for each index of these axes.
    """

    def init(params: PyTree) -> tuple[Array, PyTree]:
        return jnp.zeros((), jnp.int32), inner.init(params)

    def update(updates: PyTree, state: tuple[Array, PyTree], params: PyTree = None) -> tuple[PyTree, PyTree]:
        count, inner_state = state

        def add_trailing_axes(factor: Array, update: Array) -> Array:
            return factor.reshape(*factor.shape, *[1] * (update.ndim - factor.ndim))

        scales = jax.tree.map(add_trailing_axes, factors(count / steps, updates), updates)
        new_updates, inner_state = inner.update(updates, inner_state, params)
        return jax.tree.map(jnp.multiply, new_updates, scales), (count + 1, inner_state)

    return optax.GradientTransformation(init, update)
