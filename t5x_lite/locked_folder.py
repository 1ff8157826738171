"""A folder that one job at a time writes to, such as a run directory."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jax

from t5x_lite import file_locks
from t5x_lite.errors import UserError
from t5x_lite.run_layout import LOCK_FILE


@contextmanager
def lock_dir(folder: Path, locked_message: str, config_key: str = "") -> Iterator[None]:
    """Create a folder and lock it against other jobs on this machine. The job's first process holds the lock.

    On a file system without locks there is a warning, and no lock. After a `UserError` inside, the folders that were
    created here are deleted if they are still empty.

    Args:
        folder: the folder.
        locked_message: the error raised if another job holds the lock.
        config_key: the setting that names the folder, for the error raised if it cannot be created.

    Raises:
        UserError: another job holds the lock, or the folder cannot be created.
    """
    if jax.process_index() > 0:
        yield
        return
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock_file = (folder / LOCK_FILE).open("w")
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
            if new_folders and [path.name for path in folder.iterdir()] == [LOCK_FILE]:
                (folder / LOCK_FILE).unlink()
                with suppress(OSError):  # a parent that others have begun to use is not empty
                    for path in new_folders:
                        path.rmdir()
            raise
