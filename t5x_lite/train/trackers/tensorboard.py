"""TensorBoard's event files in `RUN/tensorboard/`, written without TensorFlow."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from t5x_lite.train.trackers.tracker import TrackedRun, Tracker, TrackerWriter

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


class TensorBoard(Tracker):
    """TensorBoard: event files in `RUN/tensorboard/`."""

    def check(self) -> None:
        """Do nothing: the library is a dependency of the package."""

    def open(self, run: TrackedRun) -> TrackerWriter:
        """Open a new event file. TensorBoard hides the steps of older files after the one that the run resumes from."""
        # tensorboardX imports PyTorch if that is installed, which takes seconds.
        from tensorboardX import SummaryWriter

        logging.getLogger("tensorboardX").setLevel(logging.ERROR)
        return EventFile(SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.resumed_step + 1))


class EventFile:
    """An open event file."""

    def __init__(self, writer: "SummaryWriter") -> None:
        self._writer = writer

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add each metric as a scalar."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()
