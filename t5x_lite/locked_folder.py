"""A folder that one job at a time writes to, such as a run directory."""

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jax

from t5x_lite import file_locks
from t5x_lite.errors import UserError
from t5x_lite.run_layout import LOCK_FILE
from t5x_lite.storage import is_remote


@contextmanager
def lock_dir(folder: str | Path, locked_message: str, config_key: str = "") -> Iterator[None]:
    """Create a folder and lock it against other jobs on this machine. The job's first process holds the lock.

    On a file system without locks there is a warning, and no lock. After a `UserError` inside, the folders that were
    created here are deleted if they are still empty. A folder in an object store is not created.

    Args:
        folder: the folder, local or in an object store.
        locked_message: the error raised if another job holds the lock.
        config_key: the setting that names the folder, for the error raised if it cannot be created.

    Raises:
        UserError: another job holds the lock, or the folder cannot be created.
    """
    if jax.process_index() > 0:
        yield
        return
    path = _lock_path(folder)
    new_folders = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock_file = path.open("w")
    except OSError as error:
        name = f"{config_key} {folder}".lstrip()
        raise UserError(f"{name}: cannot be created or written: {error.strerror}") from None
    with lock_file:
        try:
            file_locks.lock_file(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: {locked_message}") from None
        try:
            yield
        except UserError:
            if new_folders and list(path.parent.iterdir()) == [path]:
                path.unlink()
                with suppress(OSError):  # a parent that others have begun to use is not empty
                    for parent in new_folders:
                        parent.rmdir()
            raise


def is_locked(folder: str | Path) -> bool:
    """Return whether a job on this machine holds the lock of a folder, as one that outlived a sweep that started it."""
    with suppress(FileNotFoundError), _lock_path(folder).open() as lock:
        try:
            file_locks.lock_file(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _lock_path(folder: str | Path) -> Path:
    """Return the file whose lock is that of a folder.

    It is in the folder, or for a folder in an object store among the temporary files of this user and machine: each
    process has a local copy of its own of such a folder.
    """
    if not is_remote(folder):
        return Path(folder).expanduser() / LOCK_FILE
    name = hashlib.sha256(str(folder).rstrip("/").encode()).hexdigest()
    return Path(tempfile.gettempdir()) / f"t5x_lite-locks-{os.getuid()}" / name
