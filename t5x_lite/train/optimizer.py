"""Optimizers and schedules: optax, told which arrays are matrices and which axis stacks layers.

Weights of a repeated layer are one array with a leading axis, those of experts with one more, so whatever a method does
per matrix (trust ratio, factored moments, orthogonalisation) is done here per layer and expert, as if each stood alone.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from t5x_lite.models.layers import WeightAxes
from t5x_lite.train.config import (
    Adafactor,
    AdamW,
    Constant,
    Cosine,
    InverseSquareRoot,
    Lamb,
    Linear,
    Muon,
    OptimizerConfig,
    WarmupStableDecay,
)


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by count of updates done (0 for the first).

    Update s of the warm-up has peak·(s+1)/warmup_steps; the decay then runs from there to the last update.
    """
    peak, warmup = config.learning_rate, config.warmup_steps

    def rate(count: Any) -> Any:
        count = jnp.asarray(count, jnp.float32)
        rising = (count + 1) / max(warmup, 1)
        return peak * jnp.where(count < warmup, rising, _decay(config, steps, count))

    return rate


def _decay(config: OptimizerConfig, steps: int, count: Array) -> Array:
    """The rate after the warm-up as a share of the peak."""
    warmup = config.warmup_steps
    share = jnp.clip((count - warmup) / max(steps - warmup, 1), 0.0, 1.0)
    match config.schedule:
        case Constant():
            return jnp.ones_like(count)
        case Cosine(final=final):
            return final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * share))
        case Linear(final=final):
            return 1 - (1 - final) * share
        case InverseSquareRoot():
            return jnp.sqrt(max(warmup, 1) / jnp.maximum(count + 1, max(warmup, 1)))
        case WarmupStableDecay(decay=decay, shape=shape, final=final):
            x = jnp.clip((count - (1 - decay) * steps) / (decay * steps), 0.0, 1.0)
            return 1 - (1 - final) * (jnp.sqrt(x) if shape == "sqrt" else x)


def make(config: OptimizerConfig, steps: int, axes: Any) -> optax.GradientTransformation:
    """Clip by global norm, the method, decoupled weight decay, the learning rate.

    Args:
        config: which method and its settings.
        steps: updates of the whole run, for the schedule.
        axes: an `WeightAxes` for each parameter, in the shape of the parameters.
    """
    decayed = jax.tree.map(lambda a: a.inputs > 0 or (a.is_table and config.decay_embeddings), axes)
    decay = optax.add_decayed_weights(config.weight_decay, decayed)
    parts = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    match config.method:
        case AdamW(b1=b1, b2=b2, epsilon=epsilon):
            parts += [optax.scale_by_adam(b1, b2, epsilon), *_rates(axes), decay]
        case Lamb(b1=b1, b2=b2, epsilon=epsilon):
            parts += [optax.scale_by_adam(b1, b2, epsilon), decay, _per_layer(_trust_ratio, axes)]
        case Adafactor() as method:
            parts += [*_adafactor(method, axes), decay]
        case Muon() as method:
            parts += [_muon(method, axes), decay]
    return optax.chain(*parts, optax.scale_by_learning_rate(schedule(config, steps)))


def with_rates(
    inner: optax.GradientTransformation, steps: int, factors: Callable[[Array, Any], Any]
) -> optax.GradientTransformation:
    """`inner` with a factor on each parameter's rate, by the share of the run done; at 0 it sees no gradient."""

    def init(params: Any) -> Any:
        return jnp.zeros((), jnp.int32), inner.init(params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        count, own = state

        def wide(factor: Array, update: Array) -> Array:
            return factor.reshape(*factor.shape, *[1] * (update.ndim - factor.ndim))

        now = jax.tree.map(wide, factors(count / steps, updates), updates)
        seen = jax.tree.map(lambda f, u: jnp.where(f > 0, u, 0), now, updates)
        made, own = inner.update(seen, own, params)
        return jax.tree.map(jnp.multiply, made, now), (count + 1, own)

    return optax.GradientTransformation(init, update)


def _rates(axes: Any) -> list[optax.GradientTransformation]:
    """Each weight's share of the learning rate, where one has its own; the decay is the same at every width."""
    if all(a.learning_rate_scale == 1 for a in jax.tree.leaves(axes)):
        return []
    return [
        optax.stateless(
            lambda updates, _: jax.tree.map(lambda a, update: a.learning_rate_scale * update, axes, updates)
        )
    ]


def _each(function: Callable[..., Any], axes: WeightAxes, array: Array) -> Callable[..., Any]:
    """`function` of one layer's array, of one expert, for all that `array` stacks."""
    for _ in range(axes.stack_depth(array)):
        function = jax.vmap(function)
    return function


def _per_layer(function: Callable[[Array, Array], Array], axes: Any) -> optax.GradientTransformation:
    """A stateless change of each layer's update, given the update and the parameter."""

    def one(a: WeightAxes, update: Array, param: Array) -> Array:
        return _each(function, a, update)(update, param)

    return optax.stateless(lambda updates, params: jax.tree.map(one, axes, updates, params))


def _root_mean_square(x: Array) -> Array:
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def _trust_ratio(update: Array, param: Array) -> Array:
    """The update times |param| / |update|, or as it is where one of them is zero (You et al. 2020, Algorithm 2)."""
    ours, theirs = jnp.linalg.norm(param), jnp.linalg.norm(update)
    return update * jnp.where((ours > 0) & (theirs > 0), ours / jnp.where(theirs > 0, theirs, 1.0), 1.0)


def _adafactor(method: Adafactor, axes: Any) -> list[optax.GradientTransformation]:
    """Shazeer & Stern 2018, Algorithm 4: factored moments, clipped updates, steps relative to the parameter."""

    def clipped(update: Array, param: Array) -> Array:
        return update / jnp.maximum(1.0, _root_mean_square(update) / method.clip_update)

    def relative(update: Array, param: Array) -> Array:
        return update * jnp.maximum(1e-3, _root_mean_square(param))

    parts = [_per_matrix(optax.scale_by_factored_rms(decay_rate=method.decay), axes), _per_layer(clipped, axes)]
    if method.scale_by_parameter:
        parts.append(_per_layer(relative, axes))
    if method.momentum is not None:
        parts.append(optax.ema(method.momentum, debias=False))
    return parts


def _per_matrix(inner: optax.GradientTransformation, axes: Any) -> optax.GradientTransformation:
    """Let `inner` see each layer's weight alone, and one of several input or output axes as the matrix that it is."""

    def matrix(a: WeightAxes, x: Array) -> Array:
        return x.reshape(math.prod(x.shape[: a.inputs]), -1) if a.inputs else x

    def init_one(a: WeightAxes, param: Array) -> Any:
        return _each(lambda p: inner.init(matrix(a, p)), a, param)(param)

    def update_one(a: WeightAxes, update: Array, state: Any, param: Array) -> tuple[Array, Any]:
        def one(update: Array, state: Any, param: Array) -> tuple[Array, Any]:
            changed, state = inner.update(matrix(a, update), state, matrix(a, param))
            return changed.reshape(update.shape), state

        return _each(one, a, param)(update, state, param)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        pairs = jax.tree.map(update_one, axes, updates, state, params)
        return jax.tree.map(lambda _, pair: pair[0], axes, pairs), jax.tree.map(lambda _, pair: pair[1], axes, pairs)

    def init(params: Any) -> Any:
        # `optax.tree_map_params` initialises with a tree without leaves, to see where the state mirrors the parameters.
        return jax.tree.map(init_one, axes, params) if jax.tree.leaves(params) else params

    return optax.GradientTransformation(init, update)


def _muon(method: Muon, axes: Any) -> optax.GradientTransformation:
    """Muon for hidden matrices, Adam for embeddings, the output matrix, norms and biases (Jordan et al. 2024)."""

    def hidden(a: WeightAxes) -> bool:
        return a.inputs > 0 and "vocab" not in a.names

    def dimensions(updates: Any) -> Any:
        def numbers(a: WeightAxes, x: Any) -> Any:
            if not hidden(a) or isinstance(x, optax.MaskedNode):
                return x
            first = a.stack_depth(x)
            return optax.contrib.MuonDimensionNumbers(
                tuple(range(first, first + a.inputs)), tuple(range(first + a.inputs, x.ndim))
            )

        return jax.tree.map(numbers, axes, updates)

    def rescaled(a: WeightAxes, x: Any) -> Any:
        """Root mean square `scale`: an orthogonal matrix has 1/sqrt(max(fan in, fan out)) (Liu et al. 2025, §2.2)."""
        if isinstance(x, optax.MaskedNode):
            return x
        own = x.shape[a.stack_depth(x) :]
        return x * method.scale * math.sqrt(max(math.prod(own[: a.inputs]), math.prod(own[a.inputs :])))

    muon = optax.chain(
        optax.contrib.scale_by_muon(
            ns_steps=method.iterations, beta=method.momentum, weight_dimension_numbers=dimensions
        ),
        optax.stateless(lambda updates, _: jax.tree.map(rescaled, axes, updates)),
    )
    adam = optax.scale_by_adam(method.b1, method.b2, method.epsilon)
    return optax.partition({True: muon, False: adam}, jax.tree.map(hidden, axes))
