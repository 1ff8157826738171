"""The lock of a corpus folder: one process at a time prepares and verifies the files; the others wait and use them."""

import contextlib
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import IO


class CorpusLock:
    """Locks a corpus folder, and knows what other processes verified while this one waited for the lock.

    The processes of a job enter at about the same time, and only the first reads all arrays to verify them. Use as a
    context manager. A folder that cannot be written, as on a read-only disk, is not locked.

    Args:
        folder: the folder of the corpus.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock: IO[str] | None = None
        self._entered = 0.0

    def is_verified(self, name: str) -> bool:
        """Return whether a process verified the files of this name, or wrote them, since this one entered."""
        marker = self._marker(name)
        return marker.is_file() and marker.stat().st_mtime >= self._entered

    def mark_verified(self, name: str) -> None:
        """Note that the files of this name are intact."""
        if self._lock is not None:
            with contextlib.suppress(PermissionError):  # of another user; the next process verifies them once more
                self._marker(name).touch()

    def _open(self) -> IO[str]:
        path = self._folder / "lock"
        try:
            return path.open("w")
        except PermissionError:  # the file of another user can be locked, too
            return path.open()

    def _marker(self, name: str) -> Path:
        return self._folder / f"verified-{name}"

    def __enter__(self) -> "CorpusLock":
        self._entered = time.time()
        if os.access(self._folder, os.W_OK):
            self._lock = self._open()
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()
