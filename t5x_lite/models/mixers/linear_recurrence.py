"""Linear recurrences over a row, in parallel."""

import jax
from jaxtyping import Array, Float


def linear_recurrence(
    decay: Float[Array, "b l *d"], entering: Float[Array, "b l *d"], state: Float[Array, "b *d"]
) -> Float[Array, "b l *d"]:
    """Return h of h[t] = decay[t]·h[t-1] + entering[t], from `state`, by an associative scan (Blelloch 1990)."""
    entering = entering.at[:, 0].add(decay[:, 0] * state)

    def combine(earlier: tuple[Array, Array], later: tuple[Array, Array]) -> tuple[Array, Array]:
        earlier_decay, earlier_sum = earlier
        later_decay, later_sum = later
        return earlier_decay * later_decay, later_decay * earlier_sum + later_sum

    _, h = jax.lax.associative_scan(combine, (decay, entering), axis=1)
    return h
