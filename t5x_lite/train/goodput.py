"""Goodput: the share of a run's time that went into training steps, over all its starts."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from t5x_lite.evaluate.evaluation_model import EvaluationModel
from t5x_lite.evaluate.evaluators.evaluator import Evaluation
from t5x_lite.files import write_file

ACTIVITIES = ("compile", "data", "step", "evaluation", "checkpoint", "restart", "lost")
"""Uses of time: `data` is waiting for batches, `restart` is the time of a start before its first step, `lost` is
steps that were repeated.

The share of `step` is the goodput (the ratio of Google's ML Goodput, "productive training time").
"""
PROCESS_START = time.monotonic()
SHORTEST_SHOWN = 0.05
"""Seconds below which an activity is left out of the summary."""


class Goodput:
    """Adds up seconds by activity, and keeps them in `RUN/goodput.json`.

    Args:
        run_dir: the run directory, perhaps with the seconds of earlier starts.
        writes: this process writes the file. All processes measure.

    Attributes:
        seconds: seconds by activity.
    """

    def __init__(self, run_dir: Path, *, writes: bool) -> None:
        path = run_dir / "goodput.json"
        self._path: Path | None = path if writes else None
        self.seconds: dict[str, float] = dict.fromkeys(ACTIVITIES, 0.0)
        self._has_started = False
        with suppress(OSError, ValueError):
            earlier = json.loads(path.read_text())
            for activity in ACTIVITIES:
                if isinstance(earlier, dict) and isinstance(earlier.get(activity), float):
                    self.seconds[activity] = earlier[activity]

    @contextmanager
    def measure(self, activity: str) -> Iterator[None]:
        """Count the time inside as `activity`."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[activity] += time.monotonic() - started

    def start_steps(self, compile_seconds: float) -> None:
        """Count the time since the start of the process, without compilation, as `restart`.

        Only the first call does.
        """
        if not self._has_started:
            self._has_started = True
            self.seconds["restart"] += time.monotonic() - PROCESS_START - compile_seconds

    def add_lost(self, seconds: float) -> None:
        """Count these seconds of steps as `lost`: their steps are repeated."""
        lost = min(seconds, self.seconds["step"])
        self.seconds["step"] -= lost
        self.seconds["lost"] += lost

    def metrics(self) -> dict[str, float]:
        """Return `goodput` and `goodput/ACTIVITY_seconds`."""
        share = self.seconds["step"] / max(sum(self.seconds.values()), 1e-9)
        return {"goodput": share, **{f"goodput/{name}_seconds": value for name, value in self.seconds.items()}}

    def save(self) -> None:
        """Write the file, in the process that writes."""
        if self._path is not None:
            write_file(self._path, json.dumps(self.seconds))

    def run(self, model: EvaluationModel) -> Evaluation:
        """Write the file and return the metrics, as an evaluator of the train loop."""
        self.save()
        return Evaluation(self.metrics())

    def summary(self) -> str:
        """Return the goodput and the seconds by activity in one line."""
        parts = []
        for activity, seconds in self.seconds.items():
            if seconds >= SHORTEST_SHOWN:
                parts.append(f"{activity} {seconds:.1f} s")
        return f"goodput {self.metrics()['goodput']:.1%}: {', '.join(parts)}"
