"""The interface of a learning-rate schedule."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from t5x_lite.arrays import Array
from t5x_lite.schema import Config


@dataclass(frozen=True)
class Horizon:
    """The length of a run.

    Attributes:
        steps: updates of the whole run, or until the end of a decay.
        warmup_steps: updates of the linear warm-up, before the schedule begins.
    """

    steps: float
    warmup_steps: int

    def progress(self, count: Array) -> Array:
        """Return the share of the updates after the warm-up that are done, from 0 to 1."""
        import jax.numpy as jnp

        return jnp.clip((count - self.warmup_steps) / max(self.steps - self.warmup_steps, 1), 0.0, 1.0)


class Schedule(Config):
    """The learning rate after the warm-up.

    A schedule is one file: a class of this kind with its settings and its formula, and an entry in `SCHEDULES`.

    Attributes:
        has_end: the rate depends on the length of the run, so that a run cannot become longer.
    """

    has_end: ClassVar[bool] = True

    @property
    def decay_share(self) -> float | None:
        """Return the share of all steps in a final decay before which the rate does not depend on the run's length.

        None if there is no such phase. Runs of several lengths can share the steps before the decay.
        """
        return None

    def warmup_problems(self, warmup_steps: int, steps: int) -> Iterator[str]:
        """Yield why the schedule has no room for a warm-up, which is not longer than the run.

        Args:
            warmup_steps: steps of the warm-up.
            steps: steps of the run.
        """
        yield from ()

    @abstractmethod
    def factor(self, count: Array, horizon: Horizon) -> Array:
        """Return the learning rate as a share of its peak.

        Args:
            count: updates done so far, at least `warmup_steps`.
            horizon: the length of the run.
        """
