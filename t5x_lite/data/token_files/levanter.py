"""Levanter's token caches (`levanter/store`): arrays of Zarr 3, which TensorStore reads.

A cache is a folder with a `shard_ledger.json`. The documents of its field `input_ids` are a jagged array: `data` has
all tokens, one after the other, and `offsets` has the number of documents, then the end of each document in `data`.
Both arrays are declared much longer than what was written.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import tensorstore
from jaxtyping import Int64, Integer
from pydantic import BaseModel, NonNegativeInt, ValidationError

from t5x_lite.data.token_files.token_file import TokenFile, local_only
from t5x_lite.errors import UserError
from t5x_lite.files import read_json_object
from t5x_lite.integers import ceil_div
from t5x_lite.storage import file_status, tensorstore_location

LEDGER_FILE = "shard_ledger.json"
TOKENS = "input_ids"
ARRAY_FILE = "zarr.json"
TOKEN_BYTES = 4
"""Bytes of a token before compression; Levanter writes int32."""
BLOCK = 2**20
"""Tokens that are read at a time."""


class Ledger(BaseModel):
    """Fields of `shard_ledger.json` that are read."""

    total_num_rows: NonNegativeInt
    is_finished: bool


class StoredTokens:
    """Token ids of an array. Blocks are read when they are needed, and the last one is held in memory.

    Args:
        path: the array, for messages.
        array: the array.
        count: number of tokens.
    """

    def __init__(self, path: Path, array: tensorstore.TensorStore, count: int) -> None:
        self._path = path
        self._array = array
        self._count = count
        self._start = 0
        self._block = np.zeros(0, np.int32)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, part: slice) -> Integer[np.ndarray, "_"]:
        """Return consecutive tokens.

        Raises:
            UserError: they cannot be read.
        """
        start, stop, _ = part.indices(self._count)
        if start < self._start or stop > self._start + len(self._block):
            self._start = start
            self._block = _read(self._path, self._array, start, min(max(stop, start + BLOCK), self._count))
        return self._block[start - self._start : stop - self._start]


@local_only
def open_levanter(path: str) -> TokenFile:
    """Open a cache by its `shard_ledger.json`.

    Raises:
        UserError: the cache is not finished, is damaged, or has no `input_ids`.
    """
    return _open_cache(path, *file_status(path))


@lru_cache(maxsize=1)  # the parts of a cache that a process reads share the ends of its documents
def _open_cache(path: str, size: int, modified: int | str) -> TokenFile:
    try:
        ledger = Ledger.model_validate(read_json_object(Path(path)))
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"{path}: is not a ledger of Levanter: {problem['loc'][0]}: {problem['msg']}") from None
    if not ledger.is_finished:
        raise UserError(f"{path}: Levanter has not finished this cache (is_finished)")
    folder = Path(path).parent / TOKENS
    borders = _read_borders(folder / "offsets", ledger.total_num_rows)
    count = int(borders[-1])
    array = _open_array(folder / "data")
    _check_chunks(folder / "data", array, count)
    return TokenFile(StoredTokens(folder / "data", array, count), borders)


def _read_borders(path: Path, documents: int) -> Int64[np.ndarray, "documents_and_end"]:
    """Return where each document begins, and the end."""
    array = _open_array(path)
    _check_chunks(path, array, documents + 1)
    offsets = _read(path, array, 0, documents + 1).astype(np.int64)
    if offsets[0] != documents:
        raise UserError(f"{path}: has {offsets[0]:,} documents, but {LEDGER_FILE} {documents:,}")
    offsets[0] = 0
    if (np.diff(offsets) < 0).any():
        raise UserError(f"{path}: is damaged: its documents do not follow each other")
    return offsets


def _open_array(path: Path) -> tensorstore.TensorStore:
    spec = {"driver": "zarr3", "kvstore": tensorstore_location(str(path))}
    try:
        array = tensorstore.open(spec, open=True, read=True).result()
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as an array of Zarr 3: {_first_line(error)}") from None
    if array.rank != 1 or not np.issubdtype(array.dtype.numpy_dtype, np.integer):
        raise UserError(f"{path}: has type {array.dtype.name} and rank {array.rank}; integers of rank 1 are read")
    return array


def _check_chunks(path: Path, array: tensorstore.TensorStore, count: int) -> None:
    """Refuse an array that lacks a file: TensorStore reads zeros instead of it.

    Raises:
        UserError: with the first file that does not exist.
    """
    if count > array.shape[0]:
        raise UserError(f"{path}: is damaged: it has {array.shape[0]:,} numbers, and {count:,} are needed")
    chunk = int(np.prod(np.array(array.chunk_layout.write_chunk.shape)))
    for number in range(ceil_div(count, chunk)):
        file = path / "c" / str(number)
        if not file.is_file():
            raise UserError(f"{file}: does not exist, but the cache has {count:,} numbers there")


def _read(path: Path, array: tensorstore.TensorStore, start: int, stop: int) -> Integer[np.ndarray, "_"]:
    try:
        return np.asarray(array[start:stop].read().result())
    except ValueError as error:
        raise UserError(f"{path}: cannot be read: {_first_line(error)}") from None


def _first_line(error: ValueError) -> str:
    return str(error).partition("\n")[0][:200]
