"""Documents from files: text, JSONL and Parquet (also .gz and .zst), and TFDS without TensorFlow.

A source is cut into units, a deterministic list of pieces of files that processes can read apart.
"""

import ast
import glob
import gzip
import io
import json
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from itertools import groupby, zip_longest
from pathlib import Path
from typing import IO, Any

import zstandard

from t5x_lite.data.config import STANDARD_LIBRARY, SourceConfig
from t5x_lite.errors import UserError

UNIT_BYTES = 64 * 2**20
"""Units have about this size at most: larger files are cut where their format allows it, small ones are joined."""
SMALLEST_UNIT = 2**20
"""Small corpora are cut into about 64 units for many processes to share, but not below this."""
UNIT_RECORDS = 50_000
"""Records of a TFDS unit."""
REPLACEMENT = "\ufffd"
FIELD_BORDER = "\x1e"
"""Between the fields of a document: ASCII's record separator, taken out of the text itself."""


@dataclass(frozen=True)
class Unit:
    """A piece of a source: some files, or the part `[start, stop)` of one.

    `start` and `stop` are bytes of a line-based file, row groups of Parquet, records of TFDS; stop -1 is the end.
    """

    paths: tuple[str, ...]
    format: str
    field: tuple[str, ...]
    document: str
    split: str
    start: int = 0
    stop: int = -1

    @property
    def path(self) -> str:
        """The file, where there is one."""
        return self.paths[0]

    @property
    def identity(self) -> str:
        """Changes when what the unit holds may have changed: name, size and modification time of its files."""
        files = [Path(path) for path in self.paths]
        if self.format == "parallel":
            files = [file for path in files for file in _field_files(path, self.field) if file.is_file()]
        stats = [] if self.format == "tfds" else [file.stat() for file in files]
        return f"{self} {[(stat.st_size, stat.st_mtime_ns) for stat in stats]}"


def units(source: SourceConfig, *, whole_files: bool = False) -> list[Unit]:
    """All pieces of `source` in a fixed order, whatever machine and however many processes read them.

    With `whole_files` no file is cut into several.

    Raises:
        UserError: a glob that matches nothing, or a TFDS builder that is not there.
    """
    patterns = source.files
    if not patterns:
        raise UserError("data.files: no text is named; give a glob or a list of globs, as in data.files='corpus/*.txt'")
    python = set(_standard_library()) if STANDARD_LIBRARY in patterns else set()

    def unit(own: tuple[str, ...]) -> Unit:
        form = "python" if own[0] in python else _format(own[0]) if source.format == "auto" else source.format
        return Unit(own, form, source.field, source.document, source.split)

    if source.format == "parallel":
        patterns = tuple(pattern.replace("{}", source.field[0]) for pattern in patterns)
    if source.format == "tfds":
        return [part for path in patterns for part in _parts(unit((path,)), UNIT_BYTES)]
    paths = [path for p in patterns for path in (sorted(python) if p == STANDARD_LIBRARY else matches(p))]
    sizes = [Path(path).stat().st_size for path in paths]
    target = min(max(sum(sizes) // 64, SMALLEST_UNIT), UNIT_BYTES)
    found: list[Unit] = []
    joined = 0
    for path, size in zip(paths, sizes, strict=True):
        parts = [unit((path,))] if whole_files else _parts(unit((path,)), target)
        if found and len(parts) == 1 and joined + size <= target and parts[0].format == found[-1].format:
            found[-1] = unit((*found[-1].paths, path))
            joined += size
        else:
            found += parts
            joined = size if len(parts) == 1 else target
    return found


def matches(pattern: str) -> list[str]:
    """The files of a glob in order.

    Raises:
        UserError: there is none.
    """
    found = [path for path in sorted(glob.glob(pattern, recursive=True)) if Path(path).is_file()]  # noqa: PTH207
    if not found:
        raise UserError(f"data.files: no file matches {pattern!r} (looked from {Path.cwd()})")
    return found


def documents(unit: Unit) -> Iterator[tuple[str, str]]:
    """File and text of the unit's documents in order; invalid UTF-8 becomes U+FFFD.

    Raises:
        UserError: a line that is not JSON, a missing field, a file that cannot be read; file and line are named.
    """
    readers = {
        "jsonl": _jsonl,
        "parquet": _parquet,
        "tfds": _tfds,
        "text": _text,
        "parallel": _parallel,
        "python": _python_documents,
    }
    for path in unit.paths:
        try:
            for text in readers[unit.format](replace(unit, paths=(path,))):
                yield path, text
        except (OSError, EOFError, zstandard.ZstdError) as error:
            raise UserError(f"{path}: cannot be read: {error}") from None


def _standard_library() -> list[str]:
    """Source files of the running interpreter's standard library, without its own tests: text that is always there."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "test", "tests", "idlelib", "lib2to3", "ensurepip"}
    found = [path for path in sorted(root.rglob("*.py")) if not left_out & set(path.relative_to(root).parts)]
    if not found:
        raise UserError(f"{root}: this interpreter has no source of its standard library; set data.files")
    return [str(path) for path in found]


def _python_documents(unit: Unit) -> Iterator[str]:
    """A module's source; the file of help topics is the language reference, one document a topic."""
    text = Path(unit.path).read_text(encoding="utf-8", errors="replace")
    if not unit.path.endswith("pydoc_data/topics.py"):
        yield text
        return
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign):
            yield from ast.literal_eval(node.value).values()


def plain(path: str) -> Path:
    """The name without .gz or .zst."""
    name = Path(path)
    return name.with_suffix("") if name.suffix in {".gz", ".zst"} else name


def _format(path: str) -> str:
    return {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}.get(
        plain(path).suffix, "text"
    )


def _parts(unit: Unit, target: int) -> list[Unit]:
    if unit.format == "tfds":
        return _cut(unit, len(tfds_source(unit.path, unit.split)), UNIT_RECORDS)
    if unit.format == "parquet":
        with parquet_file(unit.path) as file:
            groups = file.num_row_groups
            size = max(sum(file.metadata.row_group(n).total_byte_size for n in range(groups)), 1)
            return _cut(unit, groups, max(1, groups * target // size)) if size > target else [unit]
    size = Path(unit.path).stat().st_size
    by_line = unit.format == "jsonl" or (unit.document == "line" and unit.format != "parallel")
    if by_line and plain(unit.path) == Path(unit.path) and size > target:
        return _cut(unit, size, target)
    return [unit]


def _cut(unit: Unit, size: int, step: int) -> list[Unit]:
    return [replace(unit, start=start, stop=min(start + step, size)) for start in range(0, size, step)]


def opened(path: str) -> IO[bytes]:
    """A file of bytes, decompressed where its name says .gz or .zst."""
    if path.endswith(".zst"):
        return io.BufferedReader(zstandard.open(path))
    return gzip.open(path) if path.endswith(".gz") else Path(path).open("rb")  # type: ignore[return-value]


def _lines(unit: Unit) -> Iterator[tuple[int, str]]:
    """Byte offset and text of each line that begins inside the unit."""
    with opened(unit.path) as file:
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
        with opened(unit.path) as file:
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
        yield _value(record, unit, partial(_line_of, unit, number, at))


def _line_of(unit: Unit, number: int, at: int) -> str:
    """`file:line`; the lines before the unit are counted only here, when there is an error to report."""
    if unit.start:
        with Path(unit.path).open("rb") as file:
            number, left = 1, at
            while left and (block := file.read(min(left, 2**20))):
                number, left = number + block.count(b"\n"), left - len(block)
    return f"{unit.path}:{number}"


def _value(record: Any, unit: Unit, place: Callable[[], str]) -> str:
    """The text of a record; several fields are joined by `FIELD_BORDER`."""
    return FIELD_BORDER.join(_field(record, name, place).replace(FIELD_BORDER, " ") for name in unit.field)


def _field(record: Any, name: str, place: Callable[[], str]) -> str:
    if not isinstance(record, dict) or name not in record:
        have = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
        raise UserError(f"{place()}: no field {name!r} (found {have}); set data.field")
    value = record[name]
    value = value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value
    if not isinstance(value, str):
        raise UserError(f"{place()}: field {name!r} is {type(value).__name__}, expected text; set data.field")
    return value


def _field_files(first: Path, fields: tuple[str, ...]) -> list[Path]:
    """The files of parallel text: named as the first field's, but for the field."""
    head, _, tail = first.name.rpartition(fields[0])
    return [first.with_name(head + name + tail) for name in fields]


def _parallel(unit: Unit) -> Iterator[str]:
    """Line n of each field's file."""
    first = Path(unit.path)
    paths = _field_files(first, unit.field)
    missing = next((path for path in paths if not path.is_file()), None)
    if missing:
        raise UserError(f"{missing}: is not there, but {first} is; parallel text has one file a field (data.field)")
    sides = [_lines(replace(unit, paths=(str(path),), document="line")) for path in paths]
    for number, lines in enumerate(zip_longest(*sides), start=1):
        if None in lines:
            short = paths[lines.index(None)]
            raise UserError(f"{short}:{number}: ends before the other fields' files; parallel text has equal lines")
        yield FIELD_BORDER.join(text.rstrip("\r\n").replace(FIELD_BORDER, " ") for _, text in lines)


@contextmanager
def parquet_file(path: str) -> Iterator[Any]:
    """An open Parquet file, decompressed where its name says so.

    Raises:
        UserError: it is none.
    """
    from pyarrow import parquet
    from pyarrow.lib import ArrowInvalid

    decompressed = None
    if plain(path) != Path(path):
        with opened(path) as file:
            decompressed = io.BytesIO(file.read())
    try:
        with parquet.ParquetFile(decompressed or path) as file:
            yield file
    except ArrowInvalid as error:
        raise UserError(f"{path}: not a Parquet file: {error}") from None


def _parquet(unit: Unit) -> Iterator[str]:
    with parquet_file(unit.path) as file:
        missing = next((name for name in unit.field if name not in file.schema_arrow.names), None)
        if missing:
            have = ", ".join(file.schema_arrow.names)
            raise UserError(f"{unit.path}: no column {missing!r} (found {have}); set data.field")
        groups = list(range(unit.start, file.num_row_groups if unit.stop == -1 else unit.stop))
        for batch in file.iter_batches(batch_size=1024, row_groups=groups, columns=list(unit.field)):
            for record in batch.to_pylist():
                yield _value(record, unit, lambda: unit.path)


def tfds_source(name: str, split: str, asked: str = "data.files") -> Any:
    """The records of a TFDS builder: of its directory, or by its name.

    Raises:
        UserError: there is none, or it cannot be downloaded; what has `asked` for it is named.
    """
    import tensorflow_datasets as tfds

    try:
        if Path(name).is_dir():
            return tfds.builder_from_directory(name).as_data_source(split)
        try:
            return tfds.data_source(name, split=split)
        except tfds.core.registered.DatasetNotFoundError:
            # Not prepared yet, and of a group that TFDS itself leaves out without TensorFlow: GLUE, CoNLL-2003, WMT.
            for group in ("text", "summarization", "translate"):
                import_module(f"tensorflow_datasets.{group}")
            return tfds.data_source(name, split=split)
    except Exception as error:  # of TFDS, of its builders and of the network, of every kind
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{asked}: TFDS cannot give {name} ({split}): {why}; or give files (data.files)") from None


def _tfds(unit: Unit) -> Iterator[str]:
    source = tfds_source(unit.path, unit.split)
    for number in range(unit.start, unit.stop):
        yield _value(source[number], unit, partial("{} record {}".format, unit.path, number))
