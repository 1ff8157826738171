"""Read the records of tasks from TSV, CSV, JSONL, JSON and Parquet files (also .gz and .zst)."""

import csv
from collections.abc import Iterator, Sequence

from t5x_lite.data.files import (
    BYTE_ORDER_MARK,
    LARGEST_DOCUMENT,
    READ_ERRORS,
    file_ending,
    open_file,
    open_parquet,
    parquet_rows,
)
from t5x_lite.data.lines import decode_utf8, json_problem, located_lines
from t5x_lite.data.record_text import parse_json
from t5x_lite.errors import UserError

LONGEST_FIELD = 2**30
"""Characters of a field of a TSV or CSV file. Python's own limit is too low for a long document."""

LocatedRecord = tuple[str, object]
"""The location of a record, such as `file:line`, and the record."""


class TabSeparated(csv.excel_tab):
    """TSV, in which quotes are plain characters."""

    quoting = csv.QUOTE_NONE


DIALECTS: dict[str, type[csv.Dialect]] = {".tsv": TabSeparated, ".csv": csv.excel}
"""Formats of tables by the ending of their files."""
JSON_ENDINGS = (".jsonl", ".json")


def read_record_file(path: str, columns: Sequence[str]) -> list[LocatedRecord]:
    """Read all records of a file.

    Args:
        path: the file; its ending tells the format: .tsv, .csv, .parquet, and JSONL for all others. A .json file may
            also be a list of records.
        columns: names of the columns of a TSV or CSV file without a header; empty if there is a header.

    Raises:
        UserError: a file or a line that cannot be read.
    """
    return list(stream_record_file(path, columns))


def stream_record_file(path: str, columns: Sequence[str] = ()) -> Iterator[LocatedRecord]:
    """Yield the records of a file as `read_record_file` returns them, without holding all of them.

    Raises:
        UserError: a file or a line that cannot be read.
    """
    try:
        yield from _read_records(path, columns)
    except (*READ_ERRORS, csv.Error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def _read_records(path: str, columns: Sequence[str]) -> Iterator[LocatedRecord]:
    ending = file_ending(path)
    if ending == ".parquet":
        yield from _read_parquet(path)
    elif ending in DIALECTS:
        yield from _read_table(path, DIALECTS[ending], columns)
    elif ending == ".json" and _begins_list(path):
        yield from _read_json_list(path)
    else:
        yield from _read_jsonl(path)


def _begins_list(path: str) -> bool:
    """Return whether the first character of a file, after spaces, begins a JSON list."""
    for _, line in located_lines(path):
        if line.strip():
            return line.lstrip().startswith("[")
    return False


def _read_json_list(path: str) -> Iterator[LocatedRecord]:
    with open_file(path) as file:
        content = file.read(LARGEST_DOCUMENT)
    if len(content) == LARGEST_DOCUMENT:
        raise UserError(f"{path}: is a JSON list of more than {LARGEST_DOCUMENT >> 30} GiB; write a record a line")
    try:
        records = parse_json(decode_utf8(content, path).removeprefix(BYTE_ORDER_MARK))
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path}: not a JSON list: {error}") from None
    for number, record in enumerate(records):
        yield f"{path} record {number}", record


def _read_parquet(path: str) -> Iterator[LocatedRecord]:
    with open_parquet(path) as file:
        for number, record in enumerate(parquet_rows(path, file)):
            yield f"{path} record {number}", record


def _read_table(path: str, dialect: type[csv.Dialect], columns: Sequence[str]) -> Iterator[LocatedRecord]:
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader((line for _, line in located_lines(path)), dialect=dialect)
    header = list(columns) or next(reader, [])
    for row in _rows_of_table(reader, path):
        if not row:
            continue
        location = f"{path}:{reader.line_num}"
        if len(row) != len(header):
            raise UserError(f"{location}: {len(row)} columns, expected {len(header)}: {header}")
        yield location, dict(zip(header, row, strict=True))


def _rows_of_table(reader: Iterator[list[str]], path: str) -> Iterator[list[str]]:
    """Yield the rows of a table.

    Raises:
        UserError: a row that cannot be read; names its line.
    """
    line = 0
    try:
        for row in reader:
            line = reader.line_num  # type: ignore[attr-defined]
            yield row
    except csv.Error as error:
        reason = str(error)
        if "new-line character" in reason:
            reason = "a carriage return inside of a field, or lines that end with one alone; write line feeds"
        raise UserError(f"{path}:{line + 1}: cannot be read: {reason}") from None


def _read_jsonl(path: str) -> Iterator[LocatedRecord]:
    for location, line in located_lines(path):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except (RecursionError, ValueError) as error:
            remedy = ""
            if file_ending(path) not in JSON_ENDINGS:
                remedy = "; records are read from .jsonl, .json, .tsv, .csv and .parquet files"
            raise UserError(f"{location}: not a JSON object: {json_problem(error)}{remedy}") from None
        yield location, record
