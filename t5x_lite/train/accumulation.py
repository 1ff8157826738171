"""The gradient of a batch, added up over its parts: microbatches, and the replicas that each have some of the rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Key, PRNGKeyArray, PyTree

from t5x_lite.models.loss_terms import Batch, LossTerms
from t5x_lite.models.sharding import sum_over

GradientFunction: TypeAlias = Callable[[PyTree, Batch, PRNGKeyArray], tuple[PyTree, tuple[LossTerms, PyTree]]]
"""Maps the trained parameters, a microbatch and its dropout key to gradients, terms of the loss and carried states."""


@dataclass(frozen=True)
class Replicas:
    """Parts of a batch on the mesh axis `data` that each have microbatches of their own.

    Attributes:
        count: size of the axis.
        reduce_dtypes: for every parameter, the type in which the sums of gradients are sent.
    """

    count: int
    reduce_dtypes: PyTree[DTypeLike]


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


def accumulated_gradient(
    gradient: GradientFunction, accumulation: Accumulation, params: PyTree, batch: Batch, key: PRNGKeyArray
) -> tuple[PyTree, tuple[LossTerms, PyTree]]:
    """Return the float32 gradient of a batch, the terms of its loss, and the states that its recurrent layers carry."""
    if accumulation.parts == 1:
        grads, outputs = gradient(params, batch, key)
    else:
        keys = jax.random.split(key, accumulation.parts)
        accumulate = _accumulate if accumulation.replicas is None else _accumulate_in_replicas
        grads, outputs = accumulate(gradient, accumulation, params, batch, keys)
    return _convert(grads, jnp.float32), outputs


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
        sent = jax.tree.map(lambda grad, dtype: grad.astype(dtype), grads, replicas.reduce_dtypes)
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
    """Interleave rows over `[microbatches, rows / microbatches, …]`, so that every device keeps its own."""
    rows = array.reshape(-1, microbatches, *array.shape[1:])
    return jnp.moveaxis(rows, 1, 0)
