"""The texts of a file, for embeddings."""

from pathlib import Path

from t5x_lite.data.files import file_ending
from t5x_lite.data.lines import located_lines
from t5x_lite.data.record_files import read_record_file
from t5x_lite.data.record_text import read_column
from t5x_lite.errors import UserError
from t5x_lite.files import check_is_file

RECORD_ENDINGS = (".jsonl", ".json", ".parquet", ".tsv", ".csv")
"""Endings of files of records, before that of a compression."""
DEFAULT_COLUMN = "text"


def read_texts(file: Path, column: str | None = None) -> list[str]:
    """Return the texts of a file: one column of records, by the ending of the file, or else its lines.

    Args:
        file: JSONL, Parquet, TSV or CSV with a header, or lines of text.
        column: column of records; None is `text`.

    Raises:
        UserError: the file cannot be read, has no text, or is not UTF-8; a column that a record lacks, or that is given
            for lines.
    """
    check_is_file(file)
    if file_ending(str(file)) in RECORD_ENDINGS:
        texts = _read_column(file, column or DEFAULT_COLUMN)
    elif column is not None:
        raise UserError(f"--text {column}: {file} has lines and no columns; records end in {', '.join(RECORD_ENDINGS)}")
    else:
        texts = _read_lines(file)
    if not texts:
        raise UserError(f"{file}: holds no text")
    return texts


def _read_column(file: Path, column: str) -> list[str]:
    texts = []
    for location, record in read_record_file(str(file), ()):
        text = read_column(record, column, location, "name the column of the text by --text")
        if not isinstance(text, str):
            raise UserError(f"{location}: column {column!r} is {type(text).__name__}, not a text")
        texts.append(text)
    return texts


def _read_lines(file: Path) -> list[str]:
    return [line.removesuffix("\n").removesuffix("\r") for _, line in located_lines(str(file))]
