"""Rows of tokens in chunks, which a recurrence computes one after the other."""

import jax.numpy as jnp
from jaxtyping import Array, Shaped


def split_chunks(array: Shaped[Array, "b l *rest"], chunk: int, mode: str = "constant") -> Shaped[Array, "c b n *rest"]:
    """Return a row in chunks of `chunk` tokens, the last one padded.

    Args:
        array: one value for each token.
        chunk: tokens of a chunk.
        mode: that of `jnp.pad`.
    """
    batch, length, *rest = array.shape
    widths = [(0, 0), (0, -length % chunk)] + [(0, 0)] * len(rest)
    padded = jnp.pad(array, widths, mode=mode)
    return jnp.moveaxis(padded.reshape(batch, -1, chunk, *rest), 1, 0)
