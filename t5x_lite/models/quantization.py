"""Matrix products of training in 8 bits, each with its gradients, by Qwix."""

from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from t5x_lite.models.trace_settings import set_context_var

if TYPE_CHECKING:
    import qwix

QuantizedType: TypeAlias = Literal["int8", "fp8"]

QUANTIZED_PRODUCT = "quantized_product"
"""Name of the results, by which rematerialisation knows them."""
QUANTIZED_AXES = frozenset({"heads", "kv_heads", "mlp"})
"""Logical axes of the matrices that are quantized: those of attention and of feed-forward layers, experts included.

Embeddings, routers, heads and the output matrix keep their type, as in the recipes of Micikevicius et al. 2022, §3.1.
"""


@dataclass(frozen=True)
class Types:
    """Types of the operands.

    Attributes:
        values: type of activations and weights.
        gradients: type of the gradients of results.
    """

    values: jnp.dtype
    gradients: jnp.dtype


TYPES: dict[QuantizedType, Types] = {
    "int8": Types(jnp.dtype(jnp.int8), jnp.dtype(jnp.int8)),
    # More range for gradients, more precision for values (Micikevicius et al. 2022, §3).
    "fp8": Types(jnp.dtype(jnp.float8_e4m3fn), jnp.dtype(jnp.float8_e5m2)),
}

_active: ContextVar[QuantizedType | None] = ContextVar("quantization", default=None)


def quantized_products(quantization: QuantizedType | None) -> AbstractContextManager[None]:
    """Quantize the matrix products of linear maps that are traced inside."""
    return set_context_var(_active, quantization)


def active_quantization(axis_names: tuple[str, ...]) -> QuantizedType | None:
    """Return the type of the products with a matrix of these logical axes; None where it keeps its own."""
    if QUANTIZED_AXES.isdisjoint(axis_names):
        return None
    return _active.get()


def quantized_product(
    x: Float[Array, "*rows d"], matrix: Float[Array, "*e d f"], quantization: QuantizedType
) -> Float[Array, "*rows f"]:
    """Return the product of rows and a matrix in 8 bits, in the type of `x`; so are the products of its gradient.

    Every slice of an operand along the contracted axes has a scale of its own: its largest absolute value. Operands of
    the backward pass are quantized anew, because other axes are contracted there.

    Args:
        x: the rows; `[experts, …, d]` where there are several matrices.
        matrix: one matrix, or `[experts, d, f]`.
        quantization: the type.
    """
    return checkpoint_name(_differentiable_product(x, matrix, quantization), QUANTIZED_PRODUCT)


@dataclass(frozen=True)
class Operand:
    """An operand of a product.

    Attributes:
        array: its values.
        dtype: the type that they are quantized to.
        contracted: the axes that the product sums.
    """

    array: Array
    dtype: jnp.dtype
    contracted: tuple[int, ...]

    def quantize(self) -> "qwix.QArray":
        """Return the values in 8 bits, with a scale for each slice along the contracted axes."""
        import qwix

        kept_axes = [axis for axis in range(self.array.ndim) if axis not in self.contracted]
        return qwix.quantize(self.array, self.dtype, channelwise_axes=kept_axes)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _differentiable_product(x: Array, matrix: Array, quantization: QuantizedType) -> Array:
    types = TYPES[quantization]
    batch = matrix.ndim - 2
    rows = Operand(x, types.values, (x.ndim - 1,))
    return _product(rows, Operand(matrix, types.values, (batch,)), batch)


def _forward(x: Array, matrix: Array, quantization: QuantizedType) -> tuple[Array, tuple[Array, Array]]:
    return _differentiable_product(x, matrix, quantization), (x, matrix)


def _backward(quantization: QuantizedType, residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, matrix = residuals
    types = TYPES[quantization]
    batch = matrix.ndim - 2
    row_axes = tuple(range(batch, x.ndim - 1))
    x_gradient = _product(
        Operand(gradient, types.gradients, (gradient.ndim - 1,)), Operand(matrix, types.values, (batch + 1,)), batch
    )
    matrix_gradient = _product(Operand(x, types.values, row_axes), Operand(gradient, types.gradients, row_axes), batch)
    return x_gradient.astype(x.dtype), matrix_gradient.astype(matrix.dtype)


_differentiable_product.defvjp(_forward, _backward)


def _product(first: Operand, second: Operand, batch: int) -> Array:
    """Return the product of two operands over their contracted axes, with `batch` leading axes in common."""
    import qwix

    batch_axes = tuple(range(batch))
    dimension_numbers = ((first.contracted, second.contracted), (batch_axes, batch_axes))
    return qwix.dot_general(first.quantize(), second.quantize(), dimension_numbers)
