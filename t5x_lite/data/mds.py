"""MosaicML's MDS, read by the description of its format: `mosaicml-streaming` wants older NumPy and Transformers.

A folder has an `index.json` that describes its shards: their columns, sizes and compression. A shard is, little-endian:

* the number of samples (uint32), then where each sample begins, and the end (uint32);
* the shard's description (JSON);
* the samples; each is the sizes of its columns of variable size (uint32), then the content of all columns.
"""

import bz2
import gzip
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from t5x_lite.errors import UserError
from t5x_lite.files import LARGEST_JSON_FILE
from t5x_lite.storage import file_exists, file_status, is_remote, match_files, open_bytes

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

INDEX_FILE = "index.json"
DECOMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "bz2": bz2.decompress,
    "gz": gzip.decompress,
    "zstd": zstd.decompress,
}
"""Compressions that are read. Brotli and Snappy are not."""
NUMBER = np.dtype("<u4")
TEXT_ENCODING = "str"


class ShardFile(BaseModel):
    """A file of a shard: its name in the folder, and its size."""

    basename: str = Field(min_length=1)
    bytes: NonNegativeInt

    @model_validator(mode="after")
    def _check_name(self) -> "ShardFile":
        if PurePosixPath(self.basename).name != self.basename:
            raise ValueError(f"basename {self.basename} is not the name of a file in the folder")
        return self


class Shard(BaseModel):
    """The description of a shard in `index.json`."""

    format: Literal["mds"]
    version: Literal[2]
    column_names: list[str]
    column_encodings: list[str]
    column_sizes: list[PositiveInt | None]
    compression: str | None
    raw_data: ShardFile
    zip_data: ShardFile | None
    samples: NonNegativeInt

    @model_validator(mode="after")
    def _check_columns(self) -> "Shard":
        if not len(self.column_names) == len(self.column_encodings) == len(self.column_sizes):
            raise ValueError("column_names, column_encodings and column_sizes have different lengths")
        if self.zip_data and self.algorithm not in DECOMPRESSORS:
            raise ValueError(f"compression {self.compression} is not one of {', '.join(DECOMPRESSORS)}")
        return self

    @property
    def algorithm(self) -> str:
        """The kind of compression, without its level."""
        return (self.compression or "").partition(":")[0]

    def path(self, index: str) -> str:
        """Return the shard's file: the uncompressed one, or the compressed one if that does not exist."""
        raw, *compressed = self.names(index)
        return compressed[0] if compressed and not file_exists(raw) else raw

    def names(self, index: str) -> list[str]:
        """Return the names that the shard's file may have: uncompressed, and compressed if it was written so."""
        files = [self.raw_data] if self.zip_data is None else [self.raw_data, self.zip_data]
        return [index.removesuffix(INDEX_FILE) + file.basename for file in files]


class MDSIndex(BaseModel):
    """The content of `index.json`."""

    version: Literal[2]
    shards: list[Shard]


def read_index(path: str) -> list[Shard]:
    """Return the shards that an `index.json` describes.

    Raises:
        UserError: it cannot be read, or is not an index of MDS.
    """
    try:
        size, modified = file_status(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    return _read_index(path, size, modified)


@lru_cache(maxsize=16)
def _read_index(path: str, size: int, modified: int | str) -> list[Shard]:
    if size > LARGEST_JSON_FILE:
        raise UserError(f"{path}: is larger than {LARGEST_JSON_FILE // 10**6} MB, and so not an index of MDS")
    try:
        with open_bytes(path) as file:
            return MDSIndex.model_validate(json.loads(file.read())).shards
    except ValidationError as error:
        problem = error.errors()[0]
        location = ".".join(map(str, problem["loc"]))
        raise UserError(f"{path}: is not an index of MDS that is read: {location}: {problem['msg']}") from None
    except (OSError, RecursionError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def existing_files(index: str, shards: Sequence[Shard]) -> list[str]:
    """Return the files of shards, without those that do not exist. A bucket is asked for all names in the folder."""
    if is_remote(index):
        present = _list_folder(index, *file_status(index))
    else:
        present = frozenset(name for shard in shards for name in shard.names(index) if file_exists(name))
    files = []
    for shard in shards:
        names = [name for name in shard.names(index) if name in present]
        files += names[:1]
    return files


@lru_cache(maxsize=16)
def _list_folder(index: str, size: int, modified: int | str) -> frozenset[str]:
    """Return the files beside an index of this size and time; their status is known from the listing."""
    return frozenset(match_files(index.removesuffix(INDEX_FILE) + "*"))


def records(index: str, shard: Shard, columns: Sequence[str]) -> Iterator[dict[str, object]]:
    """Yield the given columns of each sample of a shard; those that the shard does not have are left out.

    Raises:
        UserError: the shard is missing or damaged, or a column is no text.
    """
    path = shard.path(index)
    for name, encoding in zip(shard.column_names, shard.column_encodings, strict=True):
        if name in columns and encoding != TEXT_ENCODING:
            raise UserError(f"{path}: column {name!r} has the encoding {encoding}, expected str; set data.field")
    content = _read_shard(path, shard)
    starts = np.frombuffer(content, NUMBER, shard.samples + 1, NUMBER.itemsize).astype(np.int64)
    if (np.diff(starts) < 0).any() or starts[-1] > len(content):
        raise UserError(f"{path}: is damaged: its samples do not follow each other")
    for number in range(shard.samples):
        sample = content[starts[number] : starts[number + 1]]
        try:
            yield _decode_sample(sample, shard, columns)
        except ValueError as error:
            raise UserError(f"{path}: is damaged: record {number}: {error}") from None


def _read_shard(path: str, shard: Shard) -> bytes:
    """Return the uncompressed content of a shard, of the size that the index says."""
    try:
        with open_bytes(path) as file:
            content = file.read()
        if not path.endswith(shard.raw_data.basename):
            content = DECOMPRESSORS[shard.algorithm](content)
    except (OSError, EOFError, ValueError, zstd.ZstdError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    smallest = NUMBER.itemsize * (shard.samples + 2)
    if len(content) != shard.raw_data.bytes or len(content) < smallest:
        raise UserError(
            f"{path}: is damaged: it has {len(content):,} bytes, but the index says {shard.raw_data.bytes:,}"
        )
    if int(np.frombuffer(content, NUMBER, 1)[0]) != shard.samples:
        raise UserError(f"{path}: is damaged: it has another number of samples than the index says ({shard.samples:,})")
    return content


def _decode_sample(sample: bytes, shard: Shard, columns: Sequence[str]) -> dict[str, object]:
    """Return columns of a sample, as bytes.

    Raises:
        ValueError: it has another size than its columns.
    """
    variable = sum(size is None for size in shard.column_sizes)
    variable_sizes = iter(np.frombuffer(sample, NUMBER, variable).tolist())
    position = variable * NUMBER.itemsize
    record: dict[str, object] = {}
    for name, fixed_size in zip(shard.column_names, shard.column_sizes, strict=True):
        size = fixed_size
        if size is None:
            size = next(variable_sizes)
        if name in columns:
            record[name] = sample[position : position + size]
        position += size
    if position != len(sample):
        raise ValueError(f"it has {len(sample):,} bytes, but its columns {position:,}")
    return record
