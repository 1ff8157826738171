"""A loss over chunks of tokens, whose gradient is computed together with it.

The logits of all tokens may be too large to exist at once. The gradient of a chunk needs the logits of the chunk, which
are there when its loss has been computed. Computing both together saves a product with the output matrix in the
backward pass (Hsu et al. 2024, Liger Kernel: fused linear cross-entropy). The loss is a sum, so that the backward pass
only scales the gradient.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from t5x_lite.models.sharding import in_shard
from t5x_lite.models.token_shards import map_shards, split_tokens, sum_shards, token_axes
from t5x_lite.models.weight_gradients import has_float32_weight_gradients

Sums = TypeVar("Sums")
"""A tree of scalars that add up over chunks."""
Labels = tuple[Shaped[Array, "chunks *shards b l"], ...]
"""Arrays beside the states that no gradient is needed of, such as targets and weights."""
ChunkLoss = Callable[..., tuple[Float[Array, ""], Sums]]
"""A function of the states and the labels of a chunk, and of parameters: the loss, and sums that are not minimised."""


def sum_over_chunks(
    loss: ChunkLoss[Sums], states: Float[Array, "chunks b l d"], labels: Labels
) -> tuple[Float[Array, ""], Sums]:
    """Return the sums of a loss and of other numbers over chunks.

    On a mesh each device adds up the chunks of its own tokens, and after the last chunk the devices add up their sums
    and gradients. The compiler would have them do so after every chunk.

    Args:
        loss: a function of the states and the labels of a chunk. Gradients also pass to the arrays that it closes over.
        states: the states of all chunks.
        labels: what belongs to them; no gradient passes to these, nor from the other numbers.
    """
    axes = token_axes(*states.shape[1:3])
    states, *other_arrays = split_tokens((states, *labels), axes)
    first = (0, 0) if axes else (0,)  # of the chunks, and of the shards
    first_rows = jax.tree.map(lambda array: array[first], (states, *other_arrays))
    with in_shard(enabled=bool(axes)):
        converted, parameters = jax.closure_convert(loss, *first_rows)
    return _sum_over_chunks(converted, axes, states, tuple(other_arrays), parameters)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum_over_chunks(
    loss: ChunkLoss[Sums],
    axes: tuple[str, ...],
    states: Float[Array, "chunks *shards b l d"],
    labels: Labels,
    parameters: list[Array],
) -> tuple[Float[Array, ""], Sums]:
    """Return the sums. Arrays have an axis over the shards of the tokens, unless `axes` of the mesh are none."""

    def loss_of_rows(states: Array, *labels: Array) -> tuple[Array, Sums]:
        return loss(states, *labels, *parameters)

    compute = map_shards(loss_of_rows, axes)

    def add_chunk(sums: tuple[Array, Sums], chunk: tuple[Array, ...]) -> tuple[tuple[Array, Sums], None]:
        return jax.tree.map(jnp.add, sums, compute(*chunk)), None

    chunks = (states, *labels)
    sums, _ = jax.lax.scan(add_chunk, _zeros(compute, chunks), chunks)
    return jax.tree.map(lambda array: sum_shards(array, axes), sums)


Gradients = tuple[Float[Array, "chunks *shards b l d"], list[Array]]


def _sum_with_gradients(
    loss: ChunkLoss[Sums],
    axes: tuple[str, ...],
    states: Float[Array, "chunks *shards b l d"],
    labels: Labels,
    parameters: list[Array],
) -> tuple[tuple[Float[Array, ""], Sums], Gradients]:
    """Return the sums, and the gradients of the loss of the states and of the parameters.

    Gradients of the parameters are added up in float32, also where the parameters have fewer bits.
    """

    def gradients_of_rows(states: Array, *labels: Array) -> tuple[tuple[Any, list[Array]], Array]:
        def chunk_loss(states: Array, parameters: list[Array]) -> tuple[Array, Sums]:
            return loss(states, *labels, *parameters)

        sums, (states_gradient, gradients) = jax.value_and_grad(chunk_loss, argnums=(0, 1), has_aux=True)(
            states, parameters
        )
        gradients = [gradient.astype(jnp.promote_types(gradient.dtype, jnp.float32)) for gradient in gradients]
        return (sums, gradients), states_gradient

    compute = map_shards(gradients_of_rows, axes)

    def add_chunk(carry: tuple[Any, list[Array]], chunk: tuple[Array, ...]) -> tuple[tuple[Any, list[Array]], Array]:
        added, states_gradient = compute(*chunk)
        return jax.tree.map(jnp.add, carry, added), states_gradient

    chunks = (states, *labels)
    no_sums, _ = _zeros(compute, chunks)
    (sums, gradients), states_gradient = jax.lax.scan(add_chunk, no_sums, chunks)
    matrix_type = jnp.float32 if has_float32_weight_gradients() else states.dtype
    totals = []
    for gradient, parameter in zip(gradients, parameters, strict=True):
        # Devices send gradients of matrices in the type of the arithmetic, here as in the layers.
        sent = gradient.astype(matrix_type) if axes and parameter.ndim > 1 else gradient
        totals.append(sum_shards(sent, axes, states.shape[-1]).astype(parameter.dtype))
    sums = jax.tree.map(lambda array: sum_shards(array, axes), sums)
    return sums, (states_gradient, totals)


def _scale_gradients(
    loss: ChunkLoss[Sums], axes: tuple[str, ...], gradients: Gradients, cotangents: tuple[Float[Array, ""], Sums]
) -> tuple[Float[Array, "chunks *shards b l d"], None, list[Array]]:
    """Return the gradients of the arguments: those of the loss times the gradient of the sum."""
    factor = cotangents[0]
    states_gradient, parameter_gradients = jax.tree.map(lambda array: array * factor.astype(array.dtype), gradients)
    return states_gradient, None, parameter_gradients


_sum_over_chunks.defvjp(_sum_with_gradients, _scale_gradients)


def _zeros(compute: Callable[..., Any], chunks: tuple[Array, ...]) -> Any:
    """Return zeros in the form of the result of a chunk."""
    shapes = jax.eval_shape(compute, *(array[0] for array in chunks))
    return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
