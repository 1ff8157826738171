"""The lock of a corpus folder: one process of a machine at a time writes into it."""

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO

from t5x_lite.storage import is_remote

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
"""Errors of file systems without locks, such as Lustre without flock or NFS without lockd."""


@contextmanager
def lock_folder(folder: str) -> Iterator[None]:
    """Wait until no other process has the lock of a folder, and hold it inside.

    Object stores have no locks, and a folder that cannot be written, as on a read-only disk, is not locked: what is
    written there by several at a time is the same.
    """
    if is_remote(folder) or not os.access(folder, os.W_OK):
        yield
        return
    with _open_lock(Path(folder) / "lock") as file:
        lock_file(file, fcntl.LOCK_EX)
        yield


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
        if error.errno not in NO_LOCKS:
            raise
        _warn_of_no_lock(Path(file.name).parent)


@cache
def _warn_of_no_lock(folder: Path) -> None:
    """Warn, but once for each folder."""
    logging.warning("%s: its file system has no locks; let one process at a time write there", folder)


def _open_lock(path: Path) -> IO[str]:
    try:
        return path.open("w")
    except PermissionError:  # the file of another user can be locked, too
        return path.open()
