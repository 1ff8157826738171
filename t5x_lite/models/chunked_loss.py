"""A loss over chunks of tokens, whose gradient is computed together with it.

The logits of all tokens may be too large to exist at once. The gradient of a chunk needs the logits of the chunk, which
are there when its loss has been computed. Computing both together saves a product with the output matrix in the
backward pass (Hsu et al. 2024, Liger Kernel: fused linear cross-entropy). The loss is a sum, so that the backward pass
only scales the gradient.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

Sums = TypeVar("Sums")
"""A tree of scalars that add up over chunks."""
Labels = tuple[Shaped[Array, "chunks b l"], ...]
"""Arrays beside the states that no gradient is needed of, such as targets and weights."""
ChunkLoss = Callable[..., tuple[Float[Array, ""], Sums]]
"""A function of the states and the labels of a chunk, and of parameters: the loss, and sums that are not minimised."""


def sum_over_chunks(
    loss: ChunkLoss[Sums], states: Float[Array, "chunks b l d"], labels: Labels
) -> tuple[Float[Array, ""], Sums]:
    """Return the sums of a loss and of other numbers over chunks.

    Args:
        loss: a function of the states and the labels of a chunk. Gradients also pass to the arrays that it closes over.
        states: the states of all chunks.
        labels: what belongs to them; no gradient passes to these, nor from the other numbers.
    """
    first_chunk = jax.tree.map(lambda array: array[0], (states, *labels))
    converted, parameters = jax.closure_convert(loss, *first_chunk)
    return _sum_over_chunks(converted, states, labels, parameters)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_over_chunks(
    loss: ChunkLoss[Sums], states: Float[Array, "chunks b l d"], labels: Labels, parameters: list[Array]
) -> tuple[Float[Array, ""], Sums]:
    def add_chunk(sums: tuple[Array, Sums], chunk: tuple[Array, Labels]) -> tuple[tuple[Array, Sums], None]:
        return jax.tree.map(jnp.add, sums, loss(chunk[0], *chunk[1], *parameters)), None

    sums, _ = jax.lax.scan(add_chunk, _no_sums(loss, states, labels, parameters), (states, labels))
    return sums


Gradients = tuple[Float[Array, "chunks b l d"], list[Array]]


def _sum_with_gradients(
    loss: ChunkLoss[Sums], states: Float[Array, "chunks b l d"], labels: Labels, parameters: list[Array]
) -> tuple[tuple[Float[Array, ""], Sums], Gradients]:
    """Return the sums, and the gradients of the loss of the states and of the parameters.

    Gradients of the parameters are added up in float32, also where the parameters have fewer bits.
    """

    def add_chunk(
        carry: tuple[tuple[Array, Sums], list[Array]], chunk: tuple[Array, Labels]
    ) -> tuple[tuple[tuple[Array, Sums], list[Array]], Array]:
        def chunk_loss(states: Array, parameters: list[Array]) -> tuple[Array, Sums]:
            return loss(states, *chunk[1], *parameters)

        chunk_sums, (states_gradient, gradients) = jax.value_and_grad(chunk_loss, argnums=(0, 1), has_aux=True)(
            chunk[0], parameters
        )
        return jax.tree.map(jnp.add, carry, (chunk_sums, gradients)), states_gradient

    no_gradients = []
    for parameter in parameters:
        no_gradients.append(jnp.zeros_like(parameter, dtype=jnp.promote_types(parameter.dtype, jnp.float32)))
    zero = (_no_sums(loss, states, labels, parameters), no_gradients)
    (sums, gradients), states_gradient = jax.lax.scan(add_chunk, zero, (states, labels))
    gradients = [total.astype(parameter.dtype) for total, parameter in zip(gradients, parameters, strict=True)]
    return sums, (states_gradient, gradients)


def _scale_gradients(
    loss: ChunkLoss[Sums], gradients: Gradients, cotangents: tuple[Float[Array, ""], Sums]
) -> tuple[Float[Array, "chunks b l d"], None, list[Array]]:
    """Return the gradients of the arguments: those of the loss times the gradient of the sum."""
    factor = cotangents[0]
    states_gradient, parameter_gradients = jax.tree.map(lambda array: array * factor.astype(array.dtype), gradients)
    return states_gradient, None, parameter_gradients


_sum_over_chunks.defvjp(_sum_with_gradients, _scale_gradients)


def _no_sums(
    loss: ChunkLoss[Sums], states: Float[Array, "chunks b l d"], labels: Labels, parameters: list[Array]
) -> tuple[Float[Array, ""], Sums]:
    """Return zeros in the form of the sums of a chunk."""
    first_states, first_labels = jax.tree.map(lambda array: array[0], (states, labels))
    shapes = jax.eval_shape(loss, first_states, *first_labels, *parameters)
    return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
