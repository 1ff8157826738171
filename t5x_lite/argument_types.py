"""Types and checks of the arguments of the command line."""

import argparse
from pathlib import Path

from t5x_lite.errors import UserError
from t5x_lite.storage import is_remote


def local_path(text: str) -> Path:
    """Return the path of a local file or folder."""
    if is_remote(text):
        raise argparse.ArgumentTypeError(f"{text} must be a local path")
    return Path(text)


def positive_number(text: str) -> int:
    """Return a whole number from 1 on."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 on")
    return int(text)


def check_utf8(text: str) -> None:
    """Refuse a text of the command line whose bytes are not UTF-8: Python has surrogates for them.

    Raises:
        UserError: with the text.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"command line: {text!r} is not valid UTF-8") from None
