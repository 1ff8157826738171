"""The lock of a corpus folder: one process of a machine at a time writes into it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from t5x_lite.file_locks import lock_file
from t5x_lite.storage import is_remote


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


def _open_lock(path: Path) -> IO[str]:
    try:
        return path.open("w")
    except PermissionError:  # the file of another user can be locked, too
        return path.open()
