"""Read JSON of other programs, write files atomically, and explain failed writes."""

import contextlib
import errno
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from t5x_lite.errors import UserError

LARGEST_JSON_FILE = 200 * 10**6
"""Bytes of the largest JSON file that is read."""
FULL_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FULL_DISK_MESSAGES = ("No space left", "File too large", "Disk quota")


def check_is_file(path: Path) -> None:
    """Refuse to read a folder, a device or a pipe: reading may never end. A path without anything is not refused.

    Raises:
        UserError: it is one of these.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is not a file")


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file that another program may have written.

    Raises:
        UserError: the file cannot be read, is too large, or holds no object.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a JSON object but a {type(content).__name__}")
    return content


def read_json(path: Path) -> object:
    """Return the content of a JSON file that another program may have written.

    Raises:
        UserError: the file cannot be read, or is too large.
    """
    try:
        check_is_file(path)
        if path.stat().st_size > LARGEST_JSON_FILE:
            raise UserError(f"{path}: is larger than {LARGEST_JSON_FILE // 10**6} MB, and so not a config or index")
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    return content


def replace_file(path: Path, content: str | bytes) -> Path:
    """Write a file atomically: even after a power failure it holds either its old content or all of the new one.

    Raises:
        OSError: it cannot be written.
    """
    if isinstance(content, str):
        content = content.encode()
    # Processes may write the same file at the same time, so each has its own temporary name.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_file(path: Path, content: str | bytes) -> Path:
    """Write a file as `replace_file` does, and create its folder if necessary.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return replace_file(path, content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def check_not_input(output: Path, *inputs: Path) -> None:
    """Refuse to write over what a command reads.

    Raises:
        UserError: the output is one of the inputs.
    """
    for path in inputs:
        if output.resolve() == path.resolve():
            raise UserError(f"{output}: is read by this command and would be overwritten; give another place")


def is_disk_full(error: Exception) -> bool:
    """Return whether a write failed for lack of space.

    Some libraries pass on the operating system's message without its error number; both are recognised.
    """
    if getattr(error, "errno", None) in FULL_DISK_ERRORS:
        return True
    return any(message in str(error) for message in FULL_DISK_MESSAGES)


def free_space(folder: Path) -> str:
    """Return the free space on a folder's disk, such as `1.23 GB free`; an empty string if it is unknown."""
    with contextlib.suppress(OSError):
        return f"{shutil.disk_usage(folder).free / 1e9:.2f} GB free"
    return ""


def disk_error(folder: Path | str, error: OSError, remedy: str) -> UserError:
    """Return the error to raise for a failed write: its reason, the free space of a disk and a remedy."""
    reason = error.strerror or str(error)
    if is_disk_full(error):
        reason = "the disk is full"
    space = free_space(Path(folder))
    if space:
        reason += f" ({space})"
    return UserError(f"{folder}: cannot be written: {reason}; make room or choose another folder; {remedy}")
