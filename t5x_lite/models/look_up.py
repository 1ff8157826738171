"""Rows of a table, with the gradient that is fast on a GPU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

MAX_ROWS_OF_PRODUCT_GRADIENT = 4096
"""Rows of a table up to which its gradient on a GPU is a product with zeros and ones."""


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def look_up(table: Float[Array, "v d"], ids: Int[Array, "b l"], dtype: DTypeLike) -> Float[Array, "b l d"]:
    """Return rows of a table, with the gradient that is fast on a GPU.

    A scatter of bfloat16 is a loop of compare-and-swap, and many tokens in few rows wait for each other (BERT-large on
    an H100: 85 of 245 ms a step for token types and positions). A small table's gradient is a product, a large one's a
    scatter in float32.
    """
    return table[ids].astype(dtype)


def _look_up_forward(table: Array, ids: Array, dtype: DTypeLike) -> tuple[Array, tuple[Array, Array]]:
    return look_up(table, ids, dtype), (ids, table)


def _look_up_backward(dtype: DTypeLike, residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, np.ndarray]:
    ids, table = residuals
    rows, width = table.shape
    flat_ids = ids.reshape(-1)
    flat_gradient = gradient.reshape(-1, width)
    if rows <= MAX_ROWS_OF_PRODUCT_GRADIENT:
        one_hot = jax.nn.one_hot(flat_ids, rows, dtype=gradient.dtype)
        total = jnp.einsum("nv,nd->vd", one_hot, flat_gradient, preferred_element_type=jnp.float32)
    else:
        total = jnp.zeros((rows, width), jnp.float32).at[flat_ids].add(flat_gradient.astype(jnp.float32))
    return total.astype(table.dtype), np.zeros(ids.shape, jax.dtypes.float0)


look_up.defvjp(_look_up_forward, _look_up_backward)
