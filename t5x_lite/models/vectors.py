"""Vectors of length one, the cosine of two, and the score of entries that do not count."""

import jax.numpy as jnp
from jaxtyping import Array, Float

MASKED_SCORE = -1e9
"""Large negative score of masked entries. It is finite, and so is its square, so that a row in which all are masked
does not become NaN."""
MIN_NORM = 1e-12
"""Least norm that a vector is divided by, as in `torch.nn.functional.normalize`."""


def normalize(vectors: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """Return the vectors scaled to length one, in float32."""
    vectors = vectors.astype(jnp.float32)
    norms = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.maximum(norms, MIN_NORM)


def cosine_similarity(first: Float[Array, "b d"], second: Float[Array, "b d"]) -> Float[Array, "b"]:
    """Return the cosine of the angle between the two vectors of each row, in float32."""
    first = first.astype(jnp.float32)
    second = second.astype(jnp.float32)
    norms = jnp.linalg.norm(first, axis=-1) * jnp.linalg.norm(second, axis=-1)
    return jnp.sum(first * second, axis=-1) / jnp.maximum(norms, MIN_NORM)
