"""A watchdog that ends a process that makes no progress."""

import faulthandler
import sys

import jax

FIRST_PROCESS_DELAY = 5
"""Seconds that the first process waits longer: when it ends, the others end without printing anything."""


class Watchdog:
    """Ends the process, and prints the stack of every thread, if nothing happens for some time.

    Args:
        minutes: the time; None waits forever.
    """

    def __init__(self, minutes: float | None) -> None:
        self._seconds: float | None = None
        if minutes is not None:
            self._seconds = 60 * minutes
            if jax.process_index() == 0:
                self._seconds += FIRST_PROCESS_DELAY

    def reset(self) -> None:
        """Restart the timer, because something has happened."""
        if self._seconds is not None:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=sys.__stderr__ or sys.stderr)

    def stop(self) -> None:
        """Stop the timer until the next `reset`."""
        faulthandler.cancel_dump_traceback_later()
