"""The interface of a tracker: where the metrics of a run go, beside its `metrics.jsonl`."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from t5x_lite.schema import Config


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers see it.

    Attributes:
        folder: the run directory, or its local copy.
        name: the name of the run: the last part of its run directory.
        identifier: a random text that the run keeps over all its starts.
        settings: every setting of the resolved config, by its dotted key.
        resumed_step: the step that the run resumes from; 0 at its beginning.
        tracked_step: the last step that trackers were sent in an earlier start.
    """

    folder: Path
    name: str
    identifier: str
    settings: Mapping[str, object]
    resumed_step: int
    tracked_step: int


class TrackerWriter(Protocol):
    """The open connection to a tracker. Its methods are called by one thread, and may raise anything."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Send the metrics of a step."""

    def close(self) -> None:
        """Send what is still waiting, and end the connection."""


class Tracker(Config):
    """A tracker with its settings.

    A tracker is one file: a class of this kind and an entry in `TRACKERS`. It imports its library inside `open`, which
    another thread than that of training calls, so that neither an import nor a slow network delays a step.
    """

    @abstractmethod
    def check(self) -> None:
        """Check before training starts that the tracker can be used.

        Raises:
            UserError: its library is not installed, or a setting is missing.
        """

    @abstractmethod
    def open(self, run: TrackedRun) -> TrackerWriter:
        """Open the run in the tracker: a new one, or the same one again if the run is resumed."""
