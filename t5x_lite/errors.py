"""The errors that a person can mend: one line, no traceback, an exit code of their own."""

import contextlib
import errno
import os
import shutil
import uuid
from pathlib import Path


class UserError(Exception):
    """What was given, what was expected, where it was set, what to do: one line for the person at the terminal.

    Raised where the user's input enters (a config, a file, a run directory, a disk that is full). The command line
    prints it alone and leaves with `exit_code`. Anything else that escapes is a bug and keeps its traceback.
    """

    exit_code = 2


class Diverged(UserError):
    """Training cannot go on: the loss is not finite, or keeps jumping. The last good checkpoint is there."""

    exit_code = 3


class ReplicaMismatch(UserError):
    """Copies of the same numbers differ between devices. The last checkpoint was made while they did not."""

    exit_code = 4


class ProcessLost(UserError):
    """A process of the job is gone; the others end, to be started again together (BSD's EX_UNAVAILABLE)."""

    exit_code = 69


STOPPED = 75
"""Exit code of a run that was asked to stop and has saved: run the same command to go on (BSD's EX_TEMPFAIL)."""


def replace_file(path: Path, content: str | bytes) -> Path:
    """Write a file that is there whole or not at all, also after a power cut.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # processes may write the same file
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        return temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_file(path: Path, content: str | bytes) -> Path:
    """`replace_file`, in a folder that is made if need be.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return replace_file(path, content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def is_disk_full(error: Exception) -> bool:
    """Whether a write failed for want of room: by the system's number, or its words, which libraries hand on alone."""
    full = getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    return full or any(words in str(error) for words in ("No space left", "File too large", "Disk quota"))


def free_space(folder: Path) -> str:
    """`1.23 GB free`; nothing where that cannot be known."""
    with contextlib.suppress(OSError):
        return f"{shutil.disk_usage(folder).free / 1e9:.2f} GB free"
    return ""


def disk_error(folder: Path, error: OSError, remedy: str) -> UserError:
    """One line for a write that failed, with the space that is left."""
    free = f" ({space})" if (space := free_space(folder)) else ""
    why = "the disk is full" if is_disk_full(error) else error.strerror or error
    return UserError(f"{folder}: cannot be written: {why}{free}; make room or choose another folder; {remedy}")
