"""The learning rates of a run as numbers on the host, for its metrics."""

import numpy as np
import optax
from jaxtyping import Float

BLOCK = 2**20
"""Steps whose rates are computed at once: a computation at each step would make the host wait for the devices."""


class LearningRates:
    """The learning rate of every step, computed block by block: a run may have more steps than fit in memory.

    Args:
        schedule: maps the number of steps done to the rate.
        steps: steps of the whole run.
        updates_per_step: updates in a step, which have the same rate.
    """

    def __init__(self, schedule: optax.Schedule, steps: int, updates_per_step: int = 1) -> None:
        self._schedule = schedule
        self._steps = steps
        self._updates_per_step = updates_per_step
        self._first = 0
        self._block = np.zeros(0, np.float32)

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, index: int) -> float:
        """Return the rate of the step that `index` steps precede, if no update has been skipped."""
        if not self._first <= index < self._first + len(self._block):
            self._first = index // BLOCK * BLOCK
            self._block = self._rates(self._first, min(self._first + BLOCK, self._steps))
        return float(self._block[index - self._first])

    def newest(self, step: int, skipped: int) -> float:
        """Return the rate of the newest update that was applied, after so many steps and skipped updates.

        The optimizer counts the updates that it applies, so that the schedule waits while they are skipped.
        """
        applied = step * self._updates_per_step - skipped
        return self[max(applied - 1, 0) // self._updates_per_step]

    def all(self) -> Float[np.ndarray, "steps"]:
        """Return the rates of all steps, if no update is skipped."""
        return self._rates(0, self._steps)

    def _rates(self, start: int, stop: int) -> Float[np.ndarray, "_"]:
        return np.asarray(self._schedule(np.arange(start, stop)))
