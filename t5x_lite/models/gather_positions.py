"""Values at given positions of each row of a batch."""

import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from t5x_lite.models.sharding import map_rows


def gather_positions(values: Shaped[Array, "b l *d"], positions: Int[Array, "b p"]) -> Shaped[Array, "b p *d"]:
    """Return the values, such as states or token types, at the given positions of each row."""
    return map_rows(_gather, (values, positions))


def _gather(rows: tuple[Shaped[Array, "b l *d"], Int[Array, "b p"]]) -> Shaped[Array, "b p *d"]:
    values, positions = rows
    return jnp.take_along_axis(values, positions.reshape(*positions.shape, *[1] * (values.ndim - 2)), axis=1)
