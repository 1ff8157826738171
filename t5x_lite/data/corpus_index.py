"""The index of a token corpus: where records, documents and parts start in the stream of tokens.

The index consists of int64 arrays that are mapped into memory, so that the time and memory to open a corpus do not
depend on its size. `write_index` adds up the lengths that the shards hold (see `corpus`). For each split there are:

* `SPLIT.records.npy`: `[records + 1]`, where each record starts, and the end of the stream;
* `SPLIT.documents.npy`: `[documents + 1]`, where each document starts, and the end of the stream;
* `SPLIT.parts.npy`: `[parts + 1]`, where each sentence or field starts, and the end (only with `data.parts`);

and `index.json`: the number of records in each shard. It is written last, so that an index with this file is complete.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from t5x_lite.data.array_files import ArrayFile, map_array
from t5x_lite.data.shards import SPLITS, ShardFiles, Split
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
        self.shard_records: list[int] = read_json_object(folder / INDEX_FILE)["records"][split]
        self.records: Int64[np.ndarray, records_and_end] = map_array(folder / f"{split}.records.npy")
        self.documents: Int64[np.ndarray, documents_and_end] = map_array(folder / f"{split}.documents.npy")
        parts_file = folder / f"{split}.parts.npy"
        self.parts: Int64[np.ndarray, parts_and_end] | None = None
        if parts_file.is_file():
            self.parts = map_array(parts_file)


def has_index(folder: Path) -> bool:
    """Return whether the folder of a corpus holds its complete index."""
    return (folder / INDEX_FILE).is_file()


def write_index(folder: Path, units: Sequence[str]) -> None:
    """Write the index of a corpus from the shards of its units. One shard's lengths at a time are in memory.

    Raises:
        OSError: a file that cannot be written.
    """
    shard_records: dict[Split, list[int]] = {}
    for split in SPLITS:
        shards = [ShardFiles(folder, unit, split) for unit in units]
        shard_records[split] = _write_split(folder, split, shards)
    replace_file(folder / INDEX_FILE, json.dumps({"records": shard_records}))


def _write_split(folder: Path, split: Split, shards: Sequence[ShardFiles]) -> list[int]:
    """Write the index of one split, and return the number of records in each shard."""
    shard_records: list[int] = []
    position = 0
    records_file = folder / f"{split}.records.npy"
    documents_file = folder / f"{split}.documents.npy"
    with ArrayFile(records_file) as records, ArrayFile(documents_file) as documents:
        for shard in shards:
            lengths, begins_document = np.load(shard.index).T
            ends = position + np.cumsum(lengths)
            starts = ends - lengths
            records.append(starts)
            documents.append(starts[begins_document > 0])
            shard_records.append(len(lengths))
            position += int(lengths.sum())
        records.append(np.array([position]))
        documents.append(np.array([position]))
    if shards and shards[0].parts.is_file():
        _write_parts(folder / f"{split}.parts.npy", shards)
    return shard_records


def _write_parts(path: Path, shards: Sequence[ShardFiles]) -> None:
    position = 0
    with ArrayFile(path) as parts:
        for shard in shards:
            lengths = np.load(shard.parts)
            parts.append(position + np.cumsum(lengths) - lengths)
            position += int(lengths.sum())
        parts.append(np.array([position]))
