"""Texts of a file: lines, or a column of records."""

import gzip
from pathlib import Path

import pytest

from t5x_lite.errors import UserError
from t5x_lite.evaluate.text_file import read_texts


def test_lines_lose_their_ends_and_the_file_its_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffone\r\n\ntwo\r three".encode())
    assert read_texts(path) == ["one", "", "two\r three"]


def test_compressed_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt.gz"
    path.write_bytes(gzip.compress(b"one\ntwo\n"))
    assert read_texts(path) == ["one", "two"]


def test_a_line_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("one\nz\u00fcrich\n".encode("latin1"))
    with pytest.raises(UserError, match=r"texts\.txt:2: is not UTF-8 at byte 2"):
        read_texts(path)
