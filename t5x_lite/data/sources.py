"""Documents from files: text, JSONL and Parquet (also .gz and .zst), and TFDS without TensorFlow.

A source is cut into units, a deterministic list of pieces of files that processes can read apart.
"""

import glob
import gzip
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import zstandard

from t5x_lite.config import SourceConfig
from t5x_lite.errors import UserError

UNIT_BYTES = 64 * 2**20
"""Large line-based files and Parquet files are cut into units of about this size."""
UNIT_RECORDS = 50_000
"""Records of a TFDS unit."""
REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Unit:
    """A piece of a source: a file, or the part `[start, stop)` of it.

    `start` and `stop` are bytes of a line-based file, row groups of Parquet, records of TFDS; stop -1 is the end.
    """

    path: str
    format: str
    field: str
    document: str
    split: str
    start: int = 0
    stop: int = -1

    @property
    def identity(self) -> str:
        """Changes when what the unit holds may have changed: name, size and modification time of the file."""
        stat = None if self.format == "tfds" else Path(self.path).stat()
        return f"{self}" if stat is None else f"{self} {stat.st_size} {stat.st_mtime_ns}"


def units(source: SourceConfig, *, validation_files: tuple[str, ...] = (), split: str = "") -> list[Unit]:
    """All pieces of `source` in a fixed order; or those of its separate validation files or split.

    Raises:
        UserError: a glob that matches nothing, or a TFDS builder that is not there.
    """
    patterns = validation_files or source.files
    if not patterns:
        raise UserError("data.files: no text is named; give a glob or a list of globs, as in data.files='corpus/*.txt'")
    found = []
    for pattern in patterns:
        paths = [pattern] if source.format == "tfds" else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
        files = [path for path in paths if source.format == "tfds" or Path(path).is_file()]
        if not files:
            raise UserError(f"data.files: no file matches {pattern!r} (looked from {Path.cwd()})")
        for path in files:
            form = _format(path) if source.format == "auto" else source.format
            whole = Unit(path, form, source.field, source.document, split or source.split)
            found += _parts(whole)
    return found


def documents(unit: Unit) -> Iterator[str]:
    """The unit's documents in order; invalid UTF-8 becomes U+FFFD.

    Raises:
        UserError: a line that is not JSON, a missing field, a file that cannot be read; file and line are named.
    """
    readers = {"jsonl": _jsonl, "parquet": _parquet, "tfds": _tfds, "text": _text}
    try:
        yield from readers[unit.format](unit)
    except (OSError, EOFError, zstandard.ZstdError) as error:
        raise UserError(f"{unit.path}: cannot be read: {error}") from None


def _plain(path: str) -> Path:
    name = Path(path)
    return name.with_suffix("") if name.suffix in {".gz", ".zst"} else name


def _format(path: str) -> str:
    return {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}.get(
        _plain(path).suffix, "text"
    )


def _parts(unit: Unit) -> list[Unit]:
    if unit.format == "tfds":
        return _cut(unit, len(_tfds_source(unit)), UNIT_RECORDS)
    if unit.format == "parquet":
        with _parquet_file(unit.path) as file:
            size = max(file.metadata.serialized_size, sum(_group_bytes(file)), 1)
            return _cut(unit, file.num_row_groups, max(1, file.num_row_groups * UNIT_BYTES // size))
    size = Path(unit.path).stat().st_size
    by_line = unit.format == "jsonl" or unit.document == "line"
    if by_line and _plain(unit.path) == Path(unit.path) and size > UNIT_BYTES:
        return _cut(unit, size, UNIT_BYTES)
    return [unit]


def _cut(unit: Unit, size: int, step: int) -> list[Unit]:
    fields = (unit.path, unit.format, unit.field, unit.document, unit.split)
    return [Unit(*fields, start, min(start + step, size)) for start in range(0, size, step)]


@contextmanager
def _open(unit: Unit) -> Iterator[IO[bytes]]:
    with Path(unit.path).open("rb") as raw:
        if unit.path.endswith(".gz"):
            yield gzip.GzipFile(fileobj=raw)  # type: ignore[misc]
        elif unit.path.endswith(".zst"):
            yield io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw))  # type: ignore[arg-type]
        else:
            yield raw


def _lines(unit: Unit) -> Iterator[tuple[int, str]]:
    """Byte offset and text of each line that begins inside the unit."""
    with _open(unit) as file:
        at = 0
        if unit.start:
            file.seek(unit.start - 1)
            at = unit.start - 1 + len(file.readline())
        for line in file:
            if unit.stop != -1 and at >= unit.stop:
                return
            yield at, line.decode("utf-8", errors="replace")
            at += len(line)


def _text(unit: Unit) -> Iterator[str]:
    if unit.document == "file":
        with _open(unit) as file:
            yield file.read().decode("utf-8", errors="replace")
        return
    lines = (line for _, line in _lines(unit))
    if unit.document == "line":
        yield from (line.rstrip("\r\n") for line in lines)
        return
    for blank, paragraph in groupby(lines, key=lambda line: not line.strip()):
        if not blank:
            yield "".join(paragraph).rstrip("\r\n")


def _jsonl(unit: Unit) -> Iterator[str]:
    for number, (at, line) in enumerate(_lines(unit), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{_line_of(unit, number, at)}: not a JSON object: {error.msg}") from None
        yield _value(record, unit, _line_of(unit, number, at))


def _line_of(unit: Unit, number: int, at: int) -> str:
    """`file:line`; the lines before the unit are counted only here, when there is an error to report."""
    if unit.start:
        with Path(unit.path).open("rb") as file:
            number, left = 1, at
            while left and (block := file.read(min(left, 2**20))):
                number, left = number + block.count(b"\n"), left - len(block)
    return f"{unit.path}:{number}"


def _value(record: Any, unit: Unit, place: str) -> str:
    if not isinstance(record, dict) or unit.field not in record:
        have = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
        raise UserError(f"{place}: no field {unit.field!r} (found {have}); set data.field")
    value = record[unit.field]
    value = value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value
    if not isinstance(value, str):
        raise UserError(f"{place}: field {unit.field!r} is {type(value).__name__}, expected text; set data.field")
    return value


@contextmanager
def _parquet_file(path: str) -> Iterator[Any]:
    from pyarrow import parquet
    from pyarrow.lib import ArrowInvalid

    decompressed = None
    if _plain(path) != Path(path):
        with _open(Unit(path, "parquet", "", "", "")) as file:
            decompressed = io.BytesIO(file.read())
    try:
        with parquet.ParquetFile(decompressed or path) as file:
            yield file
    except ArrowInvalid as error:
        raise UserError(f"{path}: not a Parquet file: {error}") from None


def _group_bytes(file: Any) -> Iterable[int]:
    return (file.metadata.row_group(n).total_byte_size for n in range(file.num_row_groups))


def _parquet(unit: Unit) -> Iterator[str]:
    with _parquet_file(unit.path) as file:
        if unit.field not in file.schema_arrow.names:
            have = ", ".join(file.schema_arrow.names)
            raise UserError(f"{unit.path}: no column {unit.field!r} (found {have}); set data.field")
        groups = list(range(unit.start, unit.stop))
        for batch in file.iter_batches(batch_size=1024, row_groups=groups, columns=[unit.field]):
            for value in batch.column(0).to_pylist():
                yield _value({unit.field: value}, unit, unit.path)


def _tfds_source(unit: Unit) -> Any:
    import tensorflow_datasets as tfds

    try:
        if Path(unit.path).is_dir():
            return tfds.builder_from_directory(unit.path).as_data_source(unit.split)
        return tfds.data_source(unit.path, split=unit.split)
    except (ValueError, KeyError, tfds.core.registered.DatasetNotFoundError) as error:
        raise UserError(
            f"data.files: TFDS has no {unit.path!r} with split {unit.split!r}: {str(error).strip().splitlines()[0]}"
        ) from None


def _tfds(unit: Unit) -> Iterator[str]:
    source = _tfds_source(unit)
    for number in range(unit.start, unit.stop):
        yield _value(source[number], unit, f"{unit.path} record {number}")
