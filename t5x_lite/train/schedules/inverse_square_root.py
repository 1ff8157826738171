"""Inverse square root decay (T5: Raffel et al. 2020, §3.1.2)."""

from t5x_lite.arrays import Array
from t5x_lite.train.schedules.schedule import Horizon, Schedule


class InverseSquareRoot(Schedule):
    """peak · sqrt(warmup / step) after the warm-up (T5: Raffel et al. 2020, §3.1.2)."""

    def factor(self, count: Array, horizon: Horizon) -> Array:
        """Return sqrt(warmup / step)."""
        import jax.numpy as jnp

        warmup = max(horizon.warmup_steps, 1)
        return jnp.sqrt(warmup / jnp.maximum(count + 1, warmup))
