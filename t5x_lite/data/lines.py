"""Lines of a text file or of a part of one, with their places for error messages."""

import json
from collections.abc import Iterator
from functools import partial

from t5x_lite.data.files import BYTE_ORDER_MARK, LARGEST_DOCUMENT, READ_ERRORS, count_lines, open_file
from t5x_lite.errors import UserError


def read_lines(path: str, start: int = 0, stop: int = -1) -> Iterator[tuple[int, str]]:
    """Yield the byte offset and the text of each line that begins in `[start, stop)`; stop -1 is the end.

    Raises:
        UserError: a line that would not fit in memory.
    """
    with open_file(path) as file:
        offset = 0
        if start:
            # Skip the line that begins before the part. The search for its end starts one byte early, so that a line
            # that begins exactly at the start is read.
            file.seek(start - 1)
            offset = start - 1 + len(file.readline())
        while line := file.readline(LARGEST_DOCUMENT + 1):
            check_size(path, line)
            if stop != -1 and offset >= stop:
                return
            text = line.decode("utf-8", errors="replace")
            if offset == 0:
                text = text.removeprefix(BYTE_ORDER_MARK)
            yield offset, text
            offset += len(line)


def located_lines(path: str, *, replaces_invalid: bool = False) -> Iterator[tuple[str, str]]:
    """Yield the location, as `file:line`, and the text of each line of a whole file, which may be compressed.

    Args:
        path: the file.
        replaces_invalid: bytes that are not UTF-8 become U+FFFD instead of an error.

    Raises:
        UserError: the file cannot be read, a line would not fit in memory, or is not UTF-8.
    """
    try:
        with open_file(path) as file:
            lines = iter(partial(file.readline, LARGEST_DOCUMENT + 1), b"")
            for number, line in enumerate(lines, start=1):
                location = f"{path}:{number}"
                check_size(location, line)
                text = line.decode("utf-8", errors="replace") if replaces_invalid else decode_utf8(line, location)
                yield location, text.removeprefix(BYTE_ORDER_MARK) if number == 1 else text
    except READ_ERRORS as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def decode_utf8(content: bytes, location: str) -> str:
    """Return the text of labelled data, which is small enough to convert. Pretraining text is read with replacements.

    Raises:
        UserError: it is not UTF-8; names the location and the byte.
    """
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{location}: is not UTF-8 at byte {error.start + 1} (0x{content[error.start]:02x}); convert the file, as "
            "with `iconv -f latin1 -t utf-8`"
        ) from None


def check_size(path: str, content: bytes) -> None:
    """Refuse a line or file that would not fit in memory, such as what a small compressed file can grow to.

    Raises:
        UserError: it is larger than `LARGEST_DOCUMENT`.
    """
    if len(content) > LARGEST_DOCUMENT:
        raise UserError(
            f"{path}: has a line or document of more than {LARGEST_DOCUMENT >> 30} GiB; cut it into lines or "
            "several files (data.document)"
        )


def line_location(path: str, number: int, offset: int, begins_at: int) -> str:
    """Return `file:line` for a line of a part of a file. Only an error pays for counting the lines before the part.

    Args:
        path: the file.
        number: of the line in the part, from 1.
        offset: of the line in the file, in bytes.
        begins_at: offset of the part.
    """
    if begins_at:
        number = 1 + count_lines(path, offset)
    return f"{path}:{number}"


def json_problem(error: ValueError | RecursionError) -> str:
    """Return why a line is not JSON, with the column; the decoder's own message would call every line the first."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at')}, column {error.colno}"
    return str(error)  # nested too deeply, or a number of too many digits
