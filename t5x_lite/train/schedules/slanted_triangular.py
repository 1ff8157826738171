"""Slanted triangular learning rates (Howard & Ruder 2018, §3.2)."""

from t5x_lite.arrays import Array
from t5x_lite.schema import setting
from t5x_lite.train.schedules.schedule import Horizon, Schedule


class SlantedTriangular(Schedule):
    """A short linear rise from 1/ratio of the peak, and a long linear fall back to it (Howard & Ruder 2018, §3.2).

    The rise is a warm-up in proportion to the run; `warmup_steps` come before it.
    """

    rise: float = setting(
        0.1, "share of the steps in the rise", gt=0, lt=1, source="Howard & Ruder 2018, §3.2: cut_frac"
    )
    ratio: float = setting(32.0, "peak over the lowest rate", ge=1, source="Howard & Ruder 2018, §3.2")

    def factor(self, count: Array, horizon: Horizon) -> Array:
        """Return (1 + p (ratio - 1)) / ratio, where p rises from 0 to 1 and falls back to 0 (equation 3)."""
        import jax.numpy as jnp

        steps = max(horizon.steps - horizon.warmup_steps, 1)
        cut = max(int(steps * self.rise), 1)
        done = count - horizon.warmup_steps
        falling = 1 - (done - cut) / (cut * (1 / self.rise - 1))
        share = jnp.clip(jnp.where(done < cut, done / cut, falling), 0.0, 1.0)
        return (1 + share * (self.ratio - 1)) / self.ratio
