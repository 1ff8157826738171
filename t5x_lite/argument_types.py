"""Types of the arguments of the command line."""

import argparse
from pathlib import Path

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
