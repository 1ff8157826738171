"""TensorBoard's event files in `RUN/tensorboard/`, written without TensorFlow."""

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from t5x_lite.train.trackers.tracker import TrackedRun, Tracker, TrackerWriter

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter

FLUSH_SECONDS = 10.0
"""Longest time that metrics are held back from the file."""


class TensorBoard(Tracker):
    """TensorBoard: event files in `RUN/tensorboard/`."""

    def check(self) -> None:
        """Do nothing: the library is a dependency of the package."""

    def open(self, run: TrackedRun) -> TrackerWriter:
        """Open a new event file. TensorBoard hides the steps of older files after the one that the run resumes from."""
        # tensorboardX imports PyTorch if that is installed, which takes seconds.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        logging.getLogger("tensorboardX").setLevel(logging.ERROR)
        folder = run.folder / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        # Not its SummaryWriter: the thread of that ends at a full disk, and whoever fills its queue then waits forever.
        writer = EventsWriter(str(folder / "events"))
        first_step = run.resumed_step + 1
        writer.write_event(Event(step=first_step, file_version="brain.Event:2"))
        writer.write_event(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))
        return EventFile(writer)


class EventFile:
    """An open event file."""

    def __init__(self, writer: "EventsWriter") -> None:
        self._writer = writer
        self._next_flush = 0.0

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add each metric as a scalar."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        now = time.time()
        for name, value in scalars.items():
            self._writer.write_event(Event(wall_time=now, step=step, summary=scalar(name, value)))
        if now >= self._next_flush:
            self._writer.flush()
            self._next_flush = now + FLUSH_SECONDS

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()
