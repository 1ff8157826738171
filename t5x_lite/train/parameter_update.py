"""The update of parameters, and the type in which they are stored."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from t5x_lite.models.layers import WeightAxes
from t5x_lite.train.averaging import AverageState, NonMonotonicAverage
from t5x_lite.train.rounding import round_leaves


class MasterCopy(NamedTuple):
    """An optimizer state with the exact parameters.

    Attributes:
        params: the parameters in float32.
        inner: state of the optimizer.
    """

    params: PyTree
    inner: PyTree


class AveragedWeights(NamedTuple):
    """An optimizer state whose parameters are an average.

    Attributes:
        iterate: the last parameters, at which gradients are taken.
        inner: state of the optimizer.
        average: state of the average.
    """

    iterate: PyTree
    inner: PyTree
    average: AverageState


@dataclass(frozen=True)
class ParameterUpdate:
    """An optimizer, and how the parameters that it changes are stored. The arithmetic is float32.

    Without a master copy each update is rounded stochastically, so that its mean is exact (Gupta et al. 2015, §3).

    Attributes:
        optimizer: changes parameters in float32.
        in_bfloat16: for each parameter, whether it is stored in bfloat16; None: none is.
        has_master_copy: the state of the optimizer holds the parameters in float32.
        average: makes the parameters of those after each update, which the state of the optimizer holds; for float32.
    """

    optimizer: optax.GradientTransformation
    in_bfloat16: PyTree[bool] | None = None
    has_master_copy: bool = False
    average: NonMonotonicAverage | None = None

    def init(self, params: PyTree) -> PyTree:
        """Return the first optimizer state for parameters in float32."""
        inner = self.optimizer.init(params)
        if self.has_master_copy:
            return MasterCopy(params, inner)
        if self.average is not None:
            return AveragedWeights(params, inner, self.average.init())
        return inner

    def gradient_point(self, params: PyTree, opt_state: PyTree) -> PyTree:
        """Return the parameters at which gradients are taken: the stored ones, unless these are an average."""
        return params if self.average is None else opt_state.iterate

    def stored(self, params: PyTree) -> PyTree:
        """Return parameters in the types in which they are stored, rounded to the nearest value."""
        if self.in_bfloat16 is None:
            return params

        def store(param: Array, is_rounded: bool) -> Array:
            return param.astype(jnp.bfloat16) if is_rounded else param

        return jax.tree.map(store, params, self.in_bfloat16)

    def apply(
        self,
        grads: PyTree,
        params: PyTree,
        opt_state: PyTree,
        key: PRNGKeyArray,
        adjust: Callable[[PyTree], PyTree],
        loss: Float[Array, ""],
    ) -> tuple[PyTree, PyTree]:
        """Return the parameters and the optimizer state after an update.

        Args:
            grads: gradients in float32.
            params: the stored parameters.
            opt_state: state of the optimizer.
            key: source of the random bits of stochastic rounding.
            adjust: changes the new parameters before they are rounded.
            loss: the loss of the batch.
        """
        if self.has_master_copy:
            master_params, inner = opt_state
            updates, inner = self.optimizer.update(grads, inner, master_params)
            new_params = adjust(optax.apply_updates(master_params, updates))
            return self.stored(new_params), MasterCopy(new_params, inner)
        if self.average is not None:
            iterate, inner, average = opt_state
            updates, inner = self.optimizer.update(grads, inner, iterate)
            iterate = adjust(optax.apply_updates(iterate, updates))
            new_params, average = self.average.update(params, iterate, average, loss)
            return new_params, AveragedWeights(iterate, inner, average)
        exact_params = jax.tree.map(lambda param: param.astype(jnp.float32), params)
        updates, opt_state = self.optimizer.update(grads, opt_state, exact_params)
        new_params = adjust(optax.apply_updates(exact_params, updates))
        if self.in_bfloat16 is None:
            return new_params, opt_state
        return round_leaves(new_params, self.in_bfloat16, key), opt_state


def is_matrix_or_table(axes: WeightAxes) -> bool:
    """Return whether a parameter is large: biases and scales of norms are few, and small updates count most there."""
    return axes.inputs > 0 or axes.is_table
