"""Per-matrix arithmetic for arrays that stack the weights of layers and experts."""

import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from t5x_lite.models.layers import WeightAxes

UpdateFunction: TypeAlias = Callable[[Float[Array, "..."], Float[Array, "..."]], Float[Array, "..."]]
"""Maps the update and the parameter of one layer to its new update."""


def over_layers(function: Callable[..., PyTree], axes: WeightAxes, array: Array) -> Callable[..., PyTree]:
    """Return a function of one layer's (and expert's) arrays, mapped over all that `array` stacks."""
    for _ in range(axes.stack_depth(array)):
        function = jax.vmap(function)
    return function


def change_each_layer(function: UpdateFunction, axes: PyTree[WeightAxes]) -> optax.GradientTransformation:
    """Return a stateless transformation that applies `function` to every layer and expert alone."""

    def change(axes: WeightAxes, update: Array, param: Array) -> Array:
        return over_layers(function, axes, update)(update, param)

    return optax.stateless(lambda updates, params: jax.tree.map(change, axes, updates, params))


def change_each_matrix(function: UpdateFunction, axes: PyTree[WeightAxes]) -> optax.GradientTransformation:
    """Return a transformation like `change_each_layer` that leaves biases and norms as they are."""

    def change(axes: WeightAxes, update: Array, param: Array) -> Array:
        if not axes.inputs and not axes.is_table:
            return update
        return over_layers(function, axes, update)(update, param)

    return optax.stateless(lambda updates, params: jax.tree.map(change, axes, updates, params))


def transform_each_matrix(
    inner: optax.GradientTransformation, axes: PyTree[WeightAxes]
) -> optax.GradientTransformation:
    """Apply `inner` to the weight of each layer and expert alone.

    A weight of several input or output axes is reshaped into a matrix, from inputs to outputs.
    """

    def as_matrix(axes: WeightAxes, array: Array) -> Array:
        if not axes.inputs:
            return array
        return array.reshape(math.prod(array.shape[: axes.inputs]), -1)

    def init_weight(axes: WeightAxes, param: Array) -> PyTree:
        def init_layer(param: Array) -> PyTree:
            return inner.init(as_matrix(axes, param))

        return over_layers(init_layer, axes, param)(param)

    def update_weight(axes: WeightAxes, update: Array, state: PyTree, param: Array) -> tuple[Array, PyTree]:
        def update_layer(update: Array, state: PyTree, param: Array) -> tuple[Array, PyTree]:
            new_update, new_state = inner.update(as_matrix(axes, update), state, as_matrix(axes, param))
            return new_update.reshape(update.shape), new_state

        return over_layers(update_layer, axes, param)(update, state, param)

    def init(params: PyTree) -> PyTree:
        # `optax.tree_map_params` initialises with a tree without leaves, to see where the state mirrors the parameters.
        if not jax.tree.leaves(params):
            return params
        return jax.tree.map(init_weight, axes, params)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        pairs = jax.tree.map(update_weight, axes, updates, state, params)
        new_updates = jax.tree.map(lambda _, pair: pair[0], axes, pairs)
        new_state = jax.tree.map(lambda _, pair: pair[1], axes, pairs)
        return new_updates, new_state

    return optax.GradientTransformation(init, update)


def root_mean_square(array: Float[Array, "..."]) -> Float[Array, ""]:
    """Return the square root of the mean of the squares."""
    return jnp.sqrt(jnp.mean(jnp.square(array)))
