"""The units of a source: a deterministic list of pieces of files that different processes can read."""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from t5x_lite.data import hub_datasets, mds
from t5x_lite.data.config import STANDARD_LIBRARY, SourceConfig
from t5x_lite.data.file_formats import TABLES, check_endings, format_by_ending
from t5x_lite.data.files import (
    is_compressed,
    match_files,
    open_parquet,
    open_tfds,
)
from t5x_lite.data.indexed_folders import INDEX_FILES, content_bytes, content_files, index_pattern
from t5x_lite.data.standard_library import standard_library_files
from t5x_lite.data.token_files import TOKEN_FILES
from t5x_lite.data.token_files.megatron import index_path
from t5x_lite.errors import UserError, join_first
from t5x_lite.storage import file_exists, file_status, is_remote

UNIT_BYTES = 64 * 2**20
"""Largest target size of a unit: larger files are cut where their format allows it, smaller files are joined."""
SMALLEST_UNIT = 2**20
"""Smallest target size of a unit: a small source is cut into about 64 units for processes to share, but not finer."""
BYTES_PER_TOKEN = 4
FILES_AT_ONCE = 32
"""Files that are opened at the same time: a bucket answers each after a while, whatever it is asked."""
UNIT_RECORDS = 50_000
"""Records of a TFDS unit."""
NAMED_FILES = 3
"""Files that an error names; it counts the others."""


@dataclass(frozen=True)
class Unit:
    """A piece of a source: some files, or the part `[start, stop)` of one file.

    `start` and `stop` count bytes of a line-based file, row groups of Parquet, or records of TFDS; stop -1 is the end.
    The names of corpora and tokenizers in the cache are hashes of this class's `repr`: if its name or the name or order
    of its fields changes, everything is tokenised again.
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
        """The file of a unit that has one file."""
        return self.paths[0]

    @property
    def identity(self) -> str:
        """A text that changes if the unit's content may have changed: names, sizes and modification times of files."""
        sizes_and_times = [file_status(path) for path in self._files()]
        return f"{self} {sizes_and_times}"

    def _files(self) -> list[str]:
        if self.format == "tfds":
            return []
        if self.format == "hub":
            return hub_datasets.local_files(hub_datasets.parse(self.path))
        if self.format == "megatron":
            return [*self.paths, *filter(file_exists, map(index_path, self.paths))]
        if self.format in INDEX_FILES:
            return [file for path in self.paths for file in content_files(path, self.format, self.start, self.stop)]
        if self.format != "parallel":
            return list(self.paths)
        files: list[str] = []
        for path in self.paths:
            files += filter(file_exists, field_files(path, self.field))
        return files


def units(
    source: SourceConfig,
    *,
    whole_files: bool = False,
    unit_bytes: int = UNIT_BYTES,
    smallest_unit: int = SMALLEST_UNIT,
    tables_as_text: bool = False,
    key: str = "data.files",
) -> list[Unit]:
    """Cut a source into units, in an order that does not depend on the machine or on the number of processes.

    Args:
        source: names the files.
        whole_files: cut no file into several units.
        unit_bytes: largest target size of a unit, in bytes.
        smallest_unit: smallest target size of a unit, in bytes.
        tables_as_text: read .csv and .tsv as text, to train a tokenizer on the records of tasks.
        key: the setting that names the files, for messages.

    Raises:
        UserError: a glob that matches nothing, or a TFDS builder that does not exist.
    """
    if not source.files:
        raise UserError("data.files: no text is named; give a glob or a list of globs, as in data.files='corpus/*.txt'")
    if source.format == "tfds":
        return _tfds_units(source)
    if any(name.startswith(hub_datasets.SCHEME) for name in source.files):
        return _hub_units(source)
    library_files: list[str] = []
    if STANDARD_LIBRARY in source.files:
        library_files = standard_library_files()
    make_unit = partial(_unit_of_files, source, library_files=frozenset(library_files))
    paths = _list_files(source, library_files, key)
    if source.format == "auto":
        check_endings(paths, TABLES if tables_as_text else ())
    sizes = [content_bytes(path, source.format) for path in paths]
    target_bytes = min(max(sum(sizes) // 64, smallest_unit), unit_bytes)
    files = [make_unit((path,)) for path in paths]
    if whole_files:
        pieces_of_files = [[unit] for unit in files]
    else:
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            pieces_of_files = list(pool.map(partial(_cut_file, target_bytes=target_bytes), files))
    result: list[Unit] = []
    joined_bytes = 0
    for unit, size, pieces in zip(files, sizes, pieces_of_files, strict=True):
        is_small = len(pieces) == 1 and joined_bytes + size <= target_bytes
        can_join = result and result[-1].stop == -1 and unit.format == result[-1].format
        if can_join and is_small:
            result[-1] = make_unit((*result[-1].paths, unit.path))
            joined_bytes += size
        else:
            result += pieces
            joined_bytes = size if len(pieces) == 1 else target_bytes
    return result


def _list_files(source: SourceConfig, library_files: list[str], key: str) -> list[str]:
    """Return the files of all patterns; of parallel text, those of the first field."""
    paths: list[str] = []
    for pattern in source.files:
        if pattern == STANDARD_LIBRARY:
            paths += library_files
        elif source.format == "parallel":
            paths += match_files(pattern.replace("{}", source.field[0]), key)
        else:
            paths += match_files(index_pattern(pattern, source.format), key)
    same_files: dict[str, list[str]] = {}
    for path in paths:
        same_files.setdefault(path if is_remote(path) else os.path.realpath(path), []).append(path)
    for names in same_files.values():
        if len(names) > 1:
            name = " = ".join(dict.fromkeys(names))
            raise UserError(
                f"{key}: {name} is named by {len(names)} patterns and would be read as often; leave one out"
            )
    return paths


def _unit_of_files(source: SourceConfig, paths: tuple[str, ...], library_files: frozenset[str] = frozenset()) -> Unit:
    """Return a unit of whole files, which all have the format of the first."""
    if paths[0] in library_files:
        file_format = "python"
    elif source.format == "auto":
        file_format = format_by_ending(paths[0])
    else:
        file_format = source.format
    return Unit(paths, file_format, source.field, source.document, source.split)


def _tfds_units(source: SourceConfig) -> list[Unit]:
    result: list[Unit] = []
    for name in source.files:
        unit = _unit_of_files(source, (name,))
        record_count = len(open_tfds(name, source.split))
        result += _cut_range(unit, record_count, UNIT_RECORDS)
    return result


def _hub_units(source: SourceConfig) -> list[Unit]:
    """Return a unit for each shard of data sets of the Hugging Face Hub, at their newest commits."""
    if source.format != "auto":
        raise UserError(f"data.files: hf:// names a data set, not files of data.format={source.format}; leave it out")
    result: list[Unit] = []
    for name in source.files:
        dataset = hub_datasets.pin(hub_datasets.parse(name, source.split))
        unit = Unit((dataset.url,), "hub", source.field, source.document, dataset.split)
        result += _cut_range(unit, hub_datasets.count_shards(dataset), 1)
    return result


def _cut_file(unit: Unit, target_bytes: int) -> list[Unit]:
    """Cut a unit of one file into units of about the target size, where its format allows it."""
    if unit.format == "parquet":
        return _cut_parquet(unit, target_bytes)
    size = content_bytes(unit.path, unit.format)
    if unit.format == "mds":
        shard_count = len(mds.read_index(unit.path))
        return _cut_range(unit, shard_count, max(1, shard_count * target_bytes // max(size, 1)))
    if unit.format in TOKEN_FILES:
        token_count = len(TOKEN_FILES[unit.format](unit.path).tokens)
        return [unit] if size <= target_bytes else _cut_range(unit, token_count, target_bytes // BYTES_PER_TOKEN)
    is_line_based = unit.format == "jsonl" or (unit.format == "text" and unit.document == "line")
    if is_line_based and not is_compressed(unit.path) and size > target_bytes:
        return _cut_range(unit, size, target_bytes)
    return [unit]


def _cut_parquet(unit: Unit, target_bytes: int) -> list[Unit]:
    with open_parquet(unit.path) as file:
        group_sizes = [file.metadata.row_group(number).total_byte_size for number in range(file.num_row_groups)]
    size = sum(group_sizes)
    if size <= target_bytes:
        return [unit]
    return _cut_range(unit, len(group_sizes), max(1, len(group_sizes) * target_bytes // size))


def _cut_range(unit: Unit, size: int, step: int) -> list[Unit]:
    return [replace(unit, start=start, stop=min(start + step, size)) for start in range(0, size, step)]


def field_files(first: str, fields: tuple[str, ...]) -> list[str]:
    """Return the files of parallel text. Their names differ from the first field's file only in the field.

    That is the last part of the name, between dots, dashes or underscores, which equals the field: the first `de` in
    `test.de.detok`. If there is none, as in `testde`, it is the last place with these letters.
    """
    folder, slash, file_name = first.rpartition("/")
    head, _, tail = file_name.rpartition(fields[0])
    if match := re.fullmatch(rf"((?:.*[._-])?){re.escape(fields[0])}((?:[._-].*)?)", file_name):
        head, tail = match.groups()
    return [folder + slash + head + name + tail for name in fields]


def name_files(units_of_text: Sequence[Unit]) -> str:
    """Return the names of the first files of units, and how many more there are, for an error."""
    paths = list(dict.fromkeys(path for unit in units_of_text for path in unit.paths))
    return join_first(paths, NAMED_FILES) or "data.files"  # a data set without records has no units
