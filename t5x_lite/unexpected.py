"""Errors that the program did not foresee: one line for each, and the traceback in a file."""

import tempfile
import traceback

DEBUG_VARIABLE = "T5X_LITE_DEBUG"
"""Environment variable that shows tracebacks."""


def describe_unexpected(error: Exception) -> str:
    """Return a line that says what is lacking, or that this is a bug and where its traceback is."""
    reason = " ".join(str(error).split())[:200]
    if isinstance(error, ModuleNotFoundError):
        return f"the Python package {error.name} is not installed; pip install {error.name}, or the extra that has it"
    if _is_out_of_memory(error):
        return (
            f"not enough memory ({reason}); lower train.batch_size or raise train.microbatches, or choose a smaller "
            "model; `t5x-lite plan` tells what a run needs"
        )
    if _is_of_a_file(error):
        return f"{error.filename}: {error.strerror}"  # type: ignore[attr-defined]
    path = _write_traceback(error)
    return (
        f"this is a bug: {type(error).__name__}: {reason}; its traceback is in {path}: please report it with "
        f"the command and the config ({DEBUG_VARIABLE}=1 shows it here)"
    )


def is_mendable(error: Exception) -> bool:
    """Return whether the user can mend the error: a missing package, too little memory, or a file."""
    return isinstance(error, ModuleNotFoundError) or _is_out_of_memory(error) or _is_of_a_file(error)


def _is_of_a_file(error: Exception) -> bool:
    return isinstance(error, OSError) and error.filename is not None and error.strerror is not None


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _write_traceback(error: Exception) -> str:
    try:
        with tempfile.NamedTemporaryFile("w", prefix="t5x-lite-", suffix=".txt", delete=False) as file:
            file.writelines(traceback.format_exception(error))
            return file.name
    except OSError:
        return "no file, because none could be written"
