"""A constant learning rate."""

from typing import ClassVar

from t5x_lite.arrays import Array
from t5x_lite.train.schedules.schedule import Horizon, Schedule


class Constant(Schedule):
    """The peak rate after the warm-up."""

    has_end: ClassVar[bool] = False

    def factor(self, count: Array, horizon: Horizon) -> Array:
        import jax.numpy as jnp

        return jnp.ones_like(count)
