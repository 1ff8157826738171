"""The texts and the records of a unit of a source, by the format of its files."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from typing import TypeAlias

from t5x_lite.data import hub_datasets, mds, webdataset_tars
from t5x_lite.data.files import (
    BYTE_ORDER_MARK,
    LARGEST_DOCUMENT,
    READ_ERRORS,
    open_file,
    open_parquet,
    open_tfds,
    parquet_rows,
)
from t5x_lite.data.lines import check_size, json_problem, line_location, read_lines
from t5x_lite.data.record_text import join_fields, missing_column, record_text
from t5x_lite.data.sources import Unit, field_files
from t5x_lite.data.standard_library import module_texts
from t5x_lite.data.token_files import TOKEN_FILES
from t5x_lite.errors import UserError
from t5x_lite.storage import file_exists

REPLACEMENT = "\ufffd"
LocatedRecord: TypeAlias = tuple[Callable[[], str], object]
"""A record, after a function that says where it comes from."""


def documents(unit: Unit) -> Iterator[tuple[str, str]]:
    """Yield the file and the text of each document of a unit, in order. Invalid UTF-8 becomes U+FFFD.

    Raises:
        UserError: a line that is not JSON, a missing field, a file that cannot be read; names the file and the line.
    """
    if unit.format in TOKEN_FILES:
        raise UserError(f"{unit.path}: holds tokens (data.format={unit.format}) and no text to read")
    read_texts = READERS[unit.format]
    for path in unit.paths:
        try:
            for text in read_texts(replace(unit, paths=(path,))):
                yield path, text
        except READ_ERRORS as error:
            raise UserError(f"{path}: cannot be read: {error}") from None


def records(unit: Unit) -> Iterator[LocatedRecord]:
    """Yield each record of a unit, in order, with a function that says where it comes from.

    Raises:
        UserError: a format without records, a line that is not JSON, a file that cannot be read.
    """
    if unit.format not in RECORD_READERS:
        raise UserError(
            f"{unit.path}: format {unit.format} has no records with fields; use {', '.join(RECORD_READERS)}"
        )
    for path in unit.paths:
        try:
            yield from RECORD_READERS[unit.format](replace(unit, paths=(path,)))
        except READ_ERRORS as error:
            raise UserError(f"{path}: cannot be read: {error}") from None


def _read_python(unit: Unit) -> Iterator[str]:
    return module_texts(unit.path)


def _hub_records(unit: Unit) -> Iterator[LocatedRecord]:
    """Yield each record of the shards `[start, stop)` of a data set of the Hugging Face Hub."""
    dataset = hub_datasets.parse(unit.path)
    for shard in range(unit.start, unit.stop):
        for number, record in enumerate(hub_datasets.records(dataset, shard)):
            yield partial("{} shard {} record {}".format, unit.path, shard, number), record


def _read_text(unit: Unit) -> Iterator[str]:
    if unit.document == "file":
        with open_file(unit.path) as file:
            content = file.read(LARGEST_DOCUMENT + 1)
        check_size(unit.path, content)
        yield content.decode("utf-8", errors="replace").removeprefix(BYTE_ORDER_MARK)
        return
    paragraph: list[str] = []
    for _, line in read_lines(unit.path, unit.start, unit.stop):
        if unit.document == "line":
            yield line.rstrip("\r\n")
        elif line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "".join(paragraph).rstrip("\r\n")
            paragraph = []
    if paragraph:
        yield "".join(paragraph).rstrip("\r\n")


def _jsonl_records(unit: Unit) -> Iterator[LocatedRecord]:
    for number, (offset, line) in enumerate(read_lines(unit.path, unit.start, unit.stop), start=1):
        if not line.strip():
            continue
        describe_location = partial(line_location, unit.path, number, offset, begins_at=unit.start)
        try:
            record = json.loads(line)
        except (RecursionError, ValueError) as error:
            raise UserError(f"{describe_location()}: not a JSON object: {json_problem(error)}") from None
        yield describe_location, record


def _read_record_texts(unit: Unit) -> Iterator[str]:
    """Yield the text of each record: its fields, joined by `FIELD_BORDER`."""
    for describe_location, record in RECORD_READERS[unit.format](unit):
        yield record_text(record, unit.field, describe_location)


def _read_parallel(unit: Unit) -> Iterator[str]:
    """Yield line n of every field's file as document n."""
    paths = field_files(unit.path, unit.field)
    for path in paths:
        if not file_exists(path):
            raise UserError(
                f"{path}: does not exist, but {unit.path} does; parallel text has one file per field (data.field)"
            )
    files = [read_lines(path) for path in paths]
    for number, lines in enumerate(zip_longest(*files), start=1):
        if None in lines:
            shortest = paths[lines.index(None)]
            raise UserError(
                f"{shortest}:{number}: ends before the other fields' files; files of parallel text have equally many "
                "lines"
            )
        yield join_fields([line.rstrip("\r\n") for _, line in lines])


def _parquet_records(unit: Unit) -> Iterator[LocatedRecord]:
    with open_parquet(unit.path) as file:
        first_record = sum(file.metadata.row_group(number).num_rows for number in range(unit.start))
        columns = file.schema_arrow.names
        for name in unit.field:
            if name not in columns:
                raise UserError(f"{unit.path}: {missing_column(name, dict.fromkeys(columns))}; set data.field")
        stop = file.num_row_groups if unit.stop == -1 else unit.stop
        rows = parquet_rows(unit.path, file, unit.field, range(unit.start, stop))
        for number, record in enumerate(rows, start=first_record):
            yield partial("{} record {}".format, unit.path, number), record


def _tfds_records(unit: Unit) -> Iterator[LocatedRecord]:
    source = open_tfds(unit.path, unit.split)
    for number in range(unit.start, unit.stop):
        yield partial("{} record {}".format, unit.path, number), source[number]


def _mds_records(unit: Unit) -> Iterator[LocatedRecord]:
    shards = mds.read_index(unit.path)
    stop = len(shards) if unit.stop == -1 else unit.stop
    for shard in shards[unit.start : stop]:
        for number, record in enumerate(mds.records(unit.path, shard, unit.field)):
            yield partial("{} record {}".format, shard.path(unit.path), number), record


def _tar_records(unit: Unit) -> Iterator[LocatedRecord]:
    for key, record in webdataset_tars.records(unit.path):
        yield partial("{} sample {}".format, unit.path, key), record


RECORD_READERS: dict[str, Callable[[Unit], Iterator[LocatedRecord]]] = {
    "jsonl": _jsonl_records,
    "parquet": _parquet_records,
    "mds": _mds_records,
    "webdataset": _tar_records,
    "tfds": _tfds_records,
    "hub": _hub_records,
}
"""Readers of the records of one file, by the format of a unit."""
READERS: dict[str, Callable[[Unit], Iterator[str]]] = {
    "text": _read_text,
    "parallel": _read_parallel,
    "python": _read_python,
    **dict.fromkeys(RECORD_READERS, _read_record_texts),
}
"""Readers of the texts of one file, by the format of a unit."""
