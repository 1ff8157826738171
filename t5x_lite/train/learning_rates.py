"""The learning rates of a run as numbers on the host, for its metrics."""

import numpy as np
import optax
from jaxtyping import Float

BLOCK = 2**20
"""Steps whose rates are computed at once: a computation at each step would make the host wait for the devices."""


class LearningRates:
    """The learning rate of every step, computed block by block: a run may have more steps than fit in memory.

    Args:
        schedule: maps the number of updates done to the rate.
        steps: updates of the whole run.
    """

    def __init__(self, schedule: optax.Schedule, steps: int) -> None:
        self._schedule = schedule
        self._steps = steps
        self._first = 0
        self._block = np.zeros(0, np.float32)

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, index: int) -> float:
        """Return the rate of the update that `index` updates precede."""
        if not self._first <= index < self._first + len(self._block):
            self._first = index // BLOCK * BLOCK
            self._block = self._rates(self._first, min(self._first + BLOCK, self._steps))
        return float(self._block[index - self._first])

    def all(self) -> Float[np.ndarray, "steps"]:
        """Return the rates of all updates."""
        return self._rates(0, self._steps)

    def _rates(self, start: int, stop: int) -> Float[np.ndarray, "_"]:
        return np.asarray(self._schedule(np.arange(start, stop)))
