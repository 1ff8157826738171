"""The index of a token corpus: where records, documents and parts start in the stream of tokens.

The index consists of int64 arrays that are mapped into memory, so that the time and memory to open a corpus do not
depend on its size. `write_index` adds up the lengths that the shards hold (see `corpus`). For each split there are:

* `SPLIT.records.npy`: `[records + 1]`, where each record starts, and the end of the stream;
* `SPLIT.documents.npy`: `[documents + 1]`, where each document starts, and the end of the stream;
* `SPLIT.parts.npy`: `[parts + 1]`, where each sentence or field starts, and the end (only with `data.parts`);

and `index.json`: the number of records in each shard, and the checksum of each array. It is written last, so that an
index with this file is complete. Opening an index verifies no checksum: `is_intact` does, once at the start of a job.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from pydantic import BaseModel, NonNegativeInt, ValidationError

from t5x_lite.data.array_files import ArrayFile, file_checksum, map_array
from t5x_lite.data.shards import SPLITS, ShardFiles, Split, damaged
from t5x_lite.errors import UserError
from t5x_lite.files import read_json_object, replace_file

INDEX_FILE = "index.json"


class CorpusIndex:
    """The index of one split of a corpus.

    Attributes:
        shard_records: number of records in each shard.
        records: where each record starts, and the end of the stream.
        documents: where each document starts, and the end of the stream.
        parts: where each sentence or field starts, and the end of the stream; None if documents have no parts.
    """

    def __init__(self, folder: Path, split: Split) -> None:
        summary = _read_summary(folder)
        self.shard_records = summary.records[split]
        self.records: Int64[np.ndarray, records_and_end] = _map_offsets(folder, f"{split}.records.npy")
        self.documents: Int64[np.ndarray, documents_and_end] = _map_offsets(folder, f"{split}.documents.npy")
        self.parts: Int64[np.ndarray, parts_and_end] | None = None
        if summary.has_parts:
            self.parts = _map_offsets(folder, f"{split}.parts.npy")
        if sum(self.shard_records) != len(self.records) - 1:
            reason = f"it counts {sum(self.shard_records)} records, but the index has {len(self.records) - 1}"
            raise damaged(folder, folder / INDEX_FILE, reason)


class IndexSummary(BaseModel, strict=True, extra="forbid"):
    """Content of `index.json`.

    Attributes:
        records: number of records in each shard of each split.
        has_parts: true if documents have parts.
        checksums: CRC-32 of each array's file, by its name.
    """

    records: dict[Split, list[NonNegativeInt]]
    has_parts: bool
    checksums: dict[str, NonNegativeInt]


def _read_summary(folder: Path) -> IndexSummary:
    path = folder / INDEX_FILE
    try:
        return IndexSummary.model_validate(read_json_object(path))
    except (UserError, ValidationError):
        raise damaged(folder, path, "it is not the summary of an index") from None


def _map_offsets(folder: Path, name: str) -> Int64[np.ndarray, "items_and_end"]:
    path = folder / name
    try:
        offsets = map_array(path)
    except (OSError, ValueError) as error:
        raise damaged(folder, path, str(error)) from None
    if len(offsets) == 0:
        raise damaged(folder, path, "it is empty")
    return offsets


def _load_lengths(folder: Path, path: Path, columns: int) -> Int64[np.ndarray, "rows columns"]:
    """Load the lengths of a shard as rows of `columns` numbers.

    Raises:
        UserError: the file is damaged.
    """
    try:
        values = np.load(path)
    except Exception as error:  # of NumPy, of the file system, and of Python's parser, which reads the header
        raise damaged(folder, path, str(error)) from None
    if values.dtype != np.int64 or values.size % columns or values.min(initial=0) < 0:
        raise damaged(folder, path, f"it has {values.dtype} values of shape {values.shape}, expected lengths")
    return values.reshape(-1, columns)


def has_index(folder: Path) -> bool:
    """Return whether the folder of a corpus holds its complete index."""
    return (folder / INDEX_FILE).is_file()


def is_intact(folder: Path, *, has_parts: bool) -> bool:
    """Return whether the index of a corpus is complete and as it was written. All of its arrays are read.

    Args:
        folder: the folder of the corpus.
        has_parts: the documents have parts.
    """
    try:
        summary = _read_summary(folder)
        if summary.has_parts != has_parts or set(summary.checksums) != set(_array_names(has_parts)):
            return False
        return all(file_checksum(folder / name) == checksum for name, checksum in summary.checksums.items())
    except (OSError, UserError):
        return False


def _array_names(has_parts: bool) -> list[str]:
    """Return the names of all arrays of an index."""
    kinds = ("records", "documents", "parts") if has_parts else ("records", "documents")
    return [f"{split}.{kind}.npy" for split in SPLITS for kind in kinds]


def write_index(folder: Path, units: Sequence[str], *, has_parts: bool) -> None:
    """Write the index of a corpus from the shards of its units. One shard's lengths at a time are in memory.

    Args:
        folder: the folder of the corpus.
        units: names of the units of text.
        has_parts: the documents have parts.

    Raises:
        OSError: a file that cannot be written.
        UserError: a shard is damaged.
    """
    shard_records: dict[Split, list[int]] = {}
    for split in SPLITS:
        shards = [ShardFiles(folder, unit, split) for unit in units]
        shard_records[split] = _write_split(folder, split, shards)
        if has_parts:
            _write_parts(folder / f"{split}.parts.npy", shards)
    checksums = {name: file_checksum(folder / name) for name in _array_names(has_parts)}
    summary = IndexSummary(records=shard_records, has_parts=has_parts, checksums=checksums)
    replace_file(folder / INDEX_FILE, summary.model_dump_json())


def _write_split(folder: Path, split: Split, shards: Sequence[ShardFiles]) -> list[int]:
    """Write the index of one split, and return the number of records in each shard."""
    shard_records: list[int] = []
    position = 0
    records_file = folder / f"{split}.records.npy"
    documents_file = folder / f"{split}.documents.npy"
    with ArrayFile(records_file) as records, ArrayFile(documents_file) as documents:
        for shard in shards:
            lengths, begins_document = _load_lengths(folder, shard.index, columns=2).T
            ends = position + np.cumsum(lengths)
            starts = ends - lengths
            records.append(starts)
            documents.append(starts[begins_document > 0])
            shard_records.append(len(lengths))
            position += int(lengths.sum())
        records.append(np.array([position]))
        documents.append(np.array([position]))
    return shard_records


def _write_parts(path: Path, shards: Sequence[ShardFiles]) -> None:
    position = 0
    with ArrayFile(path) as parts:
        for shard in shards:
            lengths = _load_lengths(shard.folder, shard.parts, columns=1)[:, 0]
            parts.append(position + np.cumsum(lengths) - lengths)
            position += int(lengths.sum())
        parts.append(np.array([position]))
