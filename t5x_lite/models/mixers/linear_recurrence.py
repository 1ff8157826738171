"""Linear recurrences over a row, in parallel, and the root that scales what enters them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LARGEST_DERIVATIVE = 1000.0
"""Bound of the derivative of a root near zero, where it grows without one (RecurrentGemma's code)."""


def linear_recurrence(
    decay: Float[Array, "b l *d"], entering: Float[Array, "b l *d"], state: Float[Array, "b *d"]
) -> Float[Array, "b l *d"]:
    """Return h of h[t] = decay[t]·h[t-1] + entering[t], from `state`, by an associative scan (Blelloch 1990)."""
    entering = jnp.concatenate([entering[:, :1] + decay[:, :1] * state[:, None], entering[:, 1:]], axis=1)

    def combine(earlier: tuple[Array, Array], later: tuple[Array, Array]) -> tuple[Array, Array]:
        earlier_decay, earlier_sum = earlier
        later_decay, later_sum = later
        return earlier_decay * later_decay, later_decay * earlier_sum + later_sum

    _, h = jax.lax.associative_scan(combine, (decay, entering), axis=1)
    return h


@jax.custom_jvp
def bounded_sqrt(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the square root, whose derivative is at most `LARGEST_DERIVATIVE`."""
    return jnp.sqrt(x)


@bounded_sqrt.defjvp
def _bounded_sqrt_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,) = primals
    (tangent,) = tangents
    return jnp.sqrt(x), tangent / jnp.sqrt(jnp.maximum(4 * x, LARGEST_DERIVATIVE**-2))
