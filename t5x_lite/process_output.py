"""The output of the process: a closed standard output, and reports of other libraries."""

import logging
import os
import select
import sys
import threading


def is_stdout_closed() -> bool:
    """Return whether the reader of the pipe that standard output writes to is gone."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def discard_stdout() -> None:
    """Redirect standard output to nowhere, so that the interpreter can flush it when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def silence_libraries() -> None:
    """Hide the reports that Orbax and gcsfs write of an error: they raise the error too, which is enough."""
    for name in ("absl", "asyncio", "orbax", "gcsfs"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    report_thread_error = threading.excepthook

    def report_other_thread_error(details: threading.ExceptHookArgs) -> None:
        if not type(details.thread).__module__.startswith("orbax"):
            report_thread_error(details)

    threading.excepthook = report_other_thread_error
