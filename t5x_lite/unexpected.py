"""Errors that the program did not foresee: one line for each, and the traceback of a bug in a file."""

import tempfile
import traceback

from t5x_lite.errors import UserError, one_line
from t5x_lite.files import is_disk_full

DEBUG_VARIABLE = "T5X_LITE_DEBUG"
"""Environment variable that shows tracebacks."""
MEMORY_MESSAGES = ("RESOURCE_EXHAUSTED", "Out of memory allocating")
"""Texts of XLA's errors for too little memory: on accelerators, and on CPUs."""


def as_user_error(error: Exception) -> UserError | None:
    """Return the error that the user can mend: a missing package, too little memory, or a file. None for a bug."""
    reason = one_line(error)
    if isinstance(error, ModuleNotFoundError):
        return UserError(
            f"the Python package {error.name} is not installed; pip install {error.name}, or the extra that has it"
        )
    if isinstance(error, MemoryError) or any(message in str(error) for message in MEMORY_MESSAGES):
        return UserError(
            f"not enough memory ({reason}); lower train.batch_size or raise train.microbatches, or choose a smaller "
            "model; `t5x-lite plan` tells what a run needs"
        )
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return UserError(f"{error.filename}: {error.strerror}")
    if isinstance(error, OSError) and is_disk_full(error):
        return UserError(f"a file cannot be written: {reason}; make room on the disk and run the same command again")
    return None


def describe_bug(error: Exception) -> str:
    """Write the traceback of a bug to a file, and return a line that names the file."""
    try:
        with tempfile.NamedTemporaryFile("w", prefix="t5x-lite-", suffix=".txt", delete=False) as file:
            file.writelines(traceback.format_exception(error))
            place = file.name
    except OSError:
        place = "no file, because none could be written"
    return (
        f"this is a bug: {type(error).__name__}: {one_line(error)}; its traceback is in {place}: please report it with "
        f"the command and the config ({DEBUG_VARIABLE}=1 shows it here)"
    )
