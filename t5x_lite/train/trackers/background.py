"""Trackers in threads of their own: neither a slow nor a failing one holds training up."""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from t5x_lite.errors import one_line
from t5x_lite.train.trackers.tracker import TrackedRun, Tracker, TrackerWriter

MOST_WAITING = 10_000
"""Steps that wait for a tracker. Later ones are left out until there is room."""
CLOSE_SECONDS = 60.0
"""Time that the end of a run waits for its trackers."""


@dataclass(frozen=True)
class StepScalars:
    """The metrics of a step."""

    step: int
    scalars: Mapping[str, float]


class BackgroundWriter:
    """Sends steps to a tracker in a thread, in order. Its first failure is reported in one line, later ones are not.

    A tracker that could not be opened is tried again with the next step: the network may come back.

    Args:
        name: the tracker's name in the config.
        tracker: the tracker.
        run: the run.
        report: prints a line.
        close_seconds: time that `close` waits.
    """

    def __init__(
        self,
        name: str,
        tracker: Tracker,
        run: TrackedRun,
        report: Callable[[str], None],
        close_seconds: float = CLOSE_SECONDS,
    ) -> None:
        self._name = name
        self._tracker = tracker
        self._run = run
        self._report = report
        self._close_seconds = close_seconds
        self._has_reported = False
        self._writer: TrackerWriter | None = None
        self._waiting: queue.Queue[StepScalars | None] = queue.Queue(MOST_WAITING)
        # A daemon: a tracker that hangs does not keep the process from ending.
        self._thread = threading.Thread(target=self._send_all, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Queue the metrics of a step. Returns at once."""
        try:
            self._waiting.put_nowait(StepScalars(step, dict(scalars)))
        except queue.Full:
            self._report_once(f"is slow: {MOST_WAITING:,} steps are waiting, and more are left out")

    def close(self) -> None:
        """Wait until all steps are sent and the tracker is closed, but not longer than `close_seconds`."""
        deadline = time.monotonic() + self._close_seconds
        with suppress(queue.Full):
            self._waiting.put(None, timeout=self._close_seconds)
        self._thread.join(max(deadline - time.monotonic(), 0.0))
        if self._thread.is_alive():
            self._report_once(f"did not end within {self._close_seconds:g} s; its last steps may be missing")

    def _send_all(self) -> None:
        while (item := self._waiting.get()) is not None:
            self._try(partial(self._send, item))
        if self._writer is not None:
            self._try(self._writer.close)

    def _send(self, item: StepScalars) -> None:
        if self._writer is None:
            self._writer = self._tracker.open(self._run)
        self._writer.write(item.step, item.scalars)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (Exception, SystemExit) as error:  # of libraries, servers and networks of every kind
            reason = one_line(error)
            self._report_once(f"failed, and training goes on without it: {reason}")

    def _report_once(self, message: str) -> None:
        if not self._has_reported:
            self._has_reported = True
            self._report(f"tracker {self._name} {message}")
