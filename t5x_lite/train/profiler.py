"""A JAX profile of some steps of a run, for TensorBoard or Perfetto."""

from collections.abc import Callable
from pathlib import Path

import jax

from t5x_lite.storage import join
from t5x_lite.train.config import STEPS_BEFORE_PROFILE

PROFILE_FOLDER = "profile"


class Profiler:
    """Writes a profile of some steps to RUN/profile.

    Args:
        run_dir: the run directory, or its local copy.
        name: name of the run directory, for the message.
        steps: steps of the profile (`train.profile`); 0 writes none.
        show: prints a message.
    """

    def __init__(self, run_dir: Path, name: str, steps: int, show: Callable[[str], None]) -> None:
        self._folder = run_dir / PROFILE_FOLDER
        self._name = join(name, PROFILE_FOLDER)
        self._steps = steps
        self._show = show
        self._is_running = False

    def before_step(self, steps_done: int) -> None:
        """Begin or end the profile where it is due, after so many steps since the start."""
        if not self._steps:
            return
        if steps_done == STEPS_BEFORE_PROFILE:
            jax.profiler.start_trace(str(self._folder))
            self._is_running = True
        if steps_done == STEPS_BEFORE_PROFILE + self._steps:
            self.stop()

    def stop(self) -> None:
        """Write the profile that has begun, also if fewer steps follow than it should have."""
        if self._is_running:
            self._is_running = False
            jax.profiler.stop_trace()
            self._show(f"profile in {self._name}")
