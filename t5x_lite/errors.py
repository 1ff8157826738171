"""The errors that a person can mend: one line, no traceback, an exit code of their own."""

import contextlib
import errno
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


class Corrupt(UserError):
    """Copies of the same numbers differ between devices. The last checkpoint was made while they did not."""

    exit_code = 4


class Lost(UserError):
    """A process of the job is gone; the others end, to be started again together (BSD's EX_UNAVAILABLE)."""

    exit_code = 69


STOPPED = 75
"""Exit code of a run that was asked to stop and has saved: run the same command to go on (BSD's EX_TEMPFAIL)."""


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write a file that is there whole or not at all, and its folder.

    Raises:
        UserError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # processes may write the same file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        return temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def disk_error(folder: Path, error: OSError, remedy: str) -> UserError:
    """One line for a write that failed, with the space that is left."""
    with contextlib.suppress(OSError):
        free = f" ({shutil.disk_usage(folder).free / 1e9:.2f} GB free)"
        why = "the disk is full" if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} else error.strerror
        return UserError(
            f"{folder}: cannot be written: {why or error}{free}; make room or choose another folder; {remedy}"
        )
    return UserError(f"{folder}: cannot be written: {error}; {remedy}")
