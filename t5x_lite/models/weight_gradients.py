"""Products whose gradients of weights are float32, so that devices and microbatches sum them in float32."""

from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from t5x_lite.models.trace_settings import set_context_var

_active: ContextVar[bool] = ContextVar("float32_weight_gradients", default=False)


def float32_weight_gradients(*, enabled: bool) -> AbstractContextManager[None]:
    """Compute the gradients of the matrices of linear maps that are traced inside in float32.

    Those of experts and of recurrences keep their type.
    """
    return set_context_var(_active, enabled)


def has_float32_weight_gradients() -> bool:
    """Return whether the gradients of matrices that are traced now are float32."""
    return _active.get()


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product_of_rows(
    x: Float[Array, "*rows d"], matrix: Float[Array, "d f"], dtype: DTypeLike
) -> Float[Array, "*rows f"]:
    """Return the product of rows and a matrix in type `dtype`.

    The gradient of the matrix is a product of operands of that type with a float32 result, which the compiler sums over
    the devices that have the rows, and only then converts.
    """
    return x @ matrix.astype(dtype)


def _forward(x: Array, matrix: Array, dtype: DTypeLike) -> tuple[Array, tuple[Array, Array]]:
    return product_of_rows(x, matrix, dtype), (x, matrix)


def _backward(dtype: DTypeLike, residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, matrix = residuals
    x_gradient = gradient @ matrix.astype(dtype).T
    rows = tuple(range(x.ndim - 1))
    matrix_gradient = jax.lax.dot_general(x, gradient, ((rows, rows), ((), ())), preferred_element_type=jnp.float32)
    return x_gradient.astype(x.dtype), matrix_gradient.astype(matrix.dtype)


product_of_rows.defvjp(_forward, _backward)
