"""The progress of a run for people: a bar on a terminal, a line from time to time elsewhere."""

import time
from collections.abc import Mapping
from typing import Self

from rich.progress import BarColumn

from t5x_lite.progress import format_duration, format_si, print_line, progress_bar

SECONDS_BETWEEN_LINES = 30
LINES_PER_RUN = 20
"""Without a terminal a line is printed this many times during a run, and whenever the last one is 30 seconds old."""


class Display:
    """Shows the steps of a run, and messages above the progress bar.

    Args:
        steps: steps of the whole run.
        enabled: False for processes that print nothing.
    """

    def __init__(self, steps: int, *, enabled: bool = True) -> None:
        self.steps = steps
        self.enabled = enabled
        columns = ("step {task.completed}/{task.total}", BarColumn(20), "{task.fields[values]}")
        self._bar = progress_bar(*columns, enabled=enabled)
        self._console = self._bar.console
        self._task = self._bar.add_task("", total=steps, values="")
        self._statuses: dict[object, str] = {}
        self._first_step = 0
        self._start_time: float | None = None
        self._last_line_time = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def start(self, step: int) -> None:
        """Begin at a step. The estimate of the remaining time counts neither earlier steps nor compilation."""
        self._start_time = None
        self._bar.reset(self._task, total=self.steps, completed=step, values="")

    def print(self, message: str) -> None:
        """Print a line above the bar."""
        if self.enabled:
            print_line(self._console, message)

    def set_status(self, source: object, status: str) -> None:
        """Show a text after the metrics of each step, until the same source sets another; empty shows nothing."""
        self._statuses[source] = status

    def show_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a finished step."""
        loss = f"loss {metrics['loss']:z.4f}"
        speed = f"{format_si(metrics['tokens_per_second'])} tok/s · MFU {metrics['mfu']:.1%}"
        values = f"{loss} · {speed}"
        statuses = "".join(f" · {status}" for status in self._statuses.values() if status)
        now = time.monotonic()
        remaining = ""
        if self._start_time is None:
            self._first_step = step
            self._start_time = now
            self._bar.reset(self._task, total=self.steps, completed=step)
        else:
            seconds_per_step = (now - self._start_time) / max(step - self._first_step, 1)
            remaining = f" · {format_duration(seconds_per_step * (self.steps - step))} left"
        self._bar.update(self._task, completed=step, values=values + statuses)
        if self._console.is_terminal:
            return
        is_due = step % max(self.steps // LINES_PER_RUN, 1) == 0
        if not is_due and now - self._last_line_time < SECONDS_BETWEEN_LINES:
            return
        self._last_line_time = now
        self.print(f"step {step}/{self.steps} · {values}{remaining}{statuses}")
