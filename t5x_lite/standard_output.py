"""Standard output whose reader has closed it, as `head` does."""

import os
import select
import sys


def is_stdout_closed() -> bool:
    """Return whether the reader of the pipe that standard output writes to is gone."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def discard_stdout() -> None:
    """Redirect standard output to nowhere, so that the interpreter can flush it when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
