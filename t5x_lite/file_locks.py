"""Locks of files against other processes, where the file system has locks."""

import errno
import fcntl
import logging
from functools import cache
from pathlib import Path
from typing import IO

UNSUPPORTED_ERRNOS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
"""Errors of file systems without locks, such as Lustre without flock or NFS without lockd."""


def lock_file(file: IO[str], operation: int) -> None:
    """Lock an open file. On a file system without locks it is left unlocked, with a warning.

    Args:
        file: the file.
        operation: of `fcntl.flock`.

    Raises:
        OSError: the file cannot be locked; BlockingIOError: another process has the lock, and is not waited for.
    """
    try:
        fcntl.flock(file, operation)
    except OSError as error:
        if error.errno not in UNSUPPORTED_ERRNOS:
            raise
        _warn_of_no_lock(Path(file.name).parent)


@cache
def _warn_of_no_lock(folder: Path) -> None:
    """Warn, but once for each folder."""
    logging.warning("%s: its file system has no locks; let one process at a time write there", folder)
