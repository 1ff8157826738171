"""Inverse square root decay (T5: Raffel et al. 2020, §3.1.2)."""

from typing import ClassVar

from t5x_lite.arrays import Array
from t5x_lite.schema import Int, setting
from t5x_lite.train.schedules.schedule import Horizon, Schedule


class InverseSquareRoot(Schedule):
    """peak · sqrt(hold / max(step, hold)) after the warm-up (T5: Raffel et al. 2020, §3.1.2)."""

    has_end: ClassVar[bool] = False

    hold_steps: Int | None = setting(
        None,
        "steps before the decay, at least those of the warm-up; null: those of the warm-up",
        unit="steps",
        ge=1,
        source="Raffel et al. 2020",
    )

    def factor(self, count: Array, horizon: Horizon) -> Array:
        """Return sqrt(hold / max(step, hold))."""
        import jax.numpy as jnp

        hold = max(self.hold_steps or 1, horizon.warmup_steps)
        return jnp.sqrt(hold / jnp.maximum(count + 1, hold))
