"""Warm-up, stable rate, decay (Hu et al. 2024, §4.2; Hägele et al. 2024, §3)."""

from collections.abc import Iterator
from typing import Literal

from t5x_lite.arrays import Array
from t5x_lite.schema import setting
from t5x_lite.train.schedules.schedule import Horizon, Schedule

ROUNDING = 1e-6
"""Steps by which the product of a share and a number of steps may be too low."""


class WarmupStableDecay(Schedule):
    """Constant, then a decay over the last share of steps (Hu et al. 2024, §4.2; Hägele et al. 2024, §3)."""

    decay: float = setting(0.2, "share of all steps in the decay", gt=0, le=1)
    shape: Literal["linear", "sqrt"] = setting(
        "linear", "1-x, or 1-sqrt(x), x from 0 to 1", source="Hägele et al. 2024"
    )
    final: float = setting(0.0, "last rate as a share of the peak", ge=0, le=1)

    @property
    def decay_share(self) -> float | None:
        return self.decay

    def warmup_problems(self, warmup_steps: int, steps: int) -> Iterator[str]:
        """Yield an error if the decay begins before the warm-up ends."""
        if warmup_steps > (1 - self.decay) * steps + ROUNDING:
            yield (
                f"optimizer.warmup_steps {warmup_steps} overlaps the decay, which takes the share {self.decay} "
                f"(optimizer.schedule.wsd.decay) at the end of train.steps {steps}"
            )

    def factor(self, count: Array, horizon: Horizon) -> Array:
        """Return 1 before the decay, and then 1 - (1 - final) x or 1 - (1 - final) sqrt(x)."""
        import jax.numpy as jnp

        steps = horizon.steps
        x = jnp.clip((count - (1 - self.decay) * steps) / (self.decay * steps), 0.0, 1.0)
        if self.shape == "sqrt":
            x = jnp.sqrt(x)
        return 1 - (1 - self.final) * x
