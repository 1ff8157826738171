"""Another order of the tokens of a row, known when the program is compiled."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

from t5x_lite.models.sharding import constrain


def reorder(x: Shaped[Array, "b l *d"], order: Int[np.ndarray, "l"]) -> Shaped[Array, "b l *d"]:
    """Return `x[:, order]`, a copy of a slice for each run of consecutive numbers; in order, all of `x`.

    The gradient of an index would be a sum token by token, which is slow on a TPU.
    """
    if np.array_equal(order, np.arange(len(order))):
        return x
    ends = np.flatnonzero(np.diff(order) != 1) + 1
    return jnp.concatenate([x[:, run[0] : run[-1] + 1] for run in np.split(order, ends)], axis=1)


def reorder_shared_rows(x: Shaped[Array, "b l d"], order: Int[np.ndarray, "l"]) -> Shaped[Array, "b l d"]:
    """Return `x[:, order]`; of rows that devices share, each device permutes some channels of the whole row."""
    if np.array_equal(order, np.arange(len(order))):
        return x
    return constrain(reorder(constrain(x, "batch", None, "length"), order), "batch", "residual_length", None)
