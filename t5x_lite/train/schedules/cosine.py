"""Cosine decay (Loshchilov & Hutter 2017)."""

from collections.abc import Iterator
from dataclasses import replace

from t5x_lite.arrays import Array
from t5x_lite.schema import setting
from t5x_lite.train.schedules.schedule import Horizon, Schedule


class Cosine(Schedule):
    """Half a cosine from the peak to `final` of it (Loshchilov & Hutter 2017), at the last step or before."""

    final: float = setting(0.1, "last rate as a share of the peak", ge=0, le=1, source="GPT-3, Brown et al. 2020, B")
    decay_end: float = setting(
        1.0,
        "share of the run's steps at which the decay ends; then the rate stays at `final`",
        gt=0,
        le=1,
        source="Brown et al. 2020, B: 260B of 300B tokens",
    )

    def warmup_problems(self, warmup_steps: int, steps: int) -> Iterator[str]:
        """Yield an error if the decay ends before the warm-up does."""
        if self.decay_end < 1 and warmup_steps >= self.decay_end * steps:
            yield (
                f"optimizer.warmup_steps {warmup_steps} leaves no step for the decay, which ends at the share "
                f"{self.decay_end} (optimizer.schedule.cosine.decay_end) of train.steps {steps}"
            )

    def factor(self, count: Array, horizon: Horizon) -> Array:
        """Return final + (1 - final) (1 + cos πp) / 2, p from 0 to 1."""
        import jax.numpy as jnp

        decay = replace(horizon, steps=self.decay_end * horizon.steps)
        return self.final + (1 - self.final) * 0.5 * (1 + jnp.cos(jnp.pi * decay.progress(count)))
