"""Arrays in chunks with checksums, on a disk or in a bucket: Zarr 3 with sharding, read and written by TensorStore.

A shard is one file or object. It begins with the places of its chunks, and each chunk can be read alone. The chunks and
their places have checksums (CRC-32C), which are verified whenever they are read; so nothing needs to be read to open an
array. A chunk that was never written is an error for its reader, not zeros.

The length of an array is not known when its first shard is written, so that an axis has room for `MAX_LENGTH` items. A
file beside the array says how many there are.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import tensorstore
from jaxtyping import Integer

from t5x_lite.errors import UserError
from t5x_lite.storage import tensorstore_location

MAX_LENGTH = 2**40
"""Declared length of an axis whose length is not known yet."""
CACHE_BYTES = 2**26
"""Memory of a process for the chunks, and the places of chunks, that it read last."""
CHUNKS_IN_MEMORY = 256
"""Chunks of an array of which TensorStore need not be asked again, which takes as long as all else for a row."""


@dataclass(frozen=True)
class Layout:
    """The type of an array, and how it is cut.

    Attributes:
        dtype: the type of its items, such as `int64`.
        chunk: shape of a chunk.
        shard: shape of a shard, whole chunks.
    """

    dtype: str
    chunk: tuple[int, ...]
    shard: tuple[int, ...]

    def metadata(self) -> dict[str, Any]:
        """Return the description in `zarr.json`, without the shape."""
        codecs: list[dict[str, Any]] = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding = {
            "chunk_shape": self.chunk,
            "codecs": codecs,
            "index_codecs": codecs,
            # Some stores cannot read the end of an object without being told its size.
            "index_location": "start",
        }
        return {
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": self.shard}},
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "fill_value": 0,
        }


class Readable(Protocol):
    """An array along whose first axis any range can be read."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the items `[start, stop)`."""


@dataclass(frozen=True)
class ArraySpec:
    """The name and the layout of an array, and the remedy if it cannot be read.

    Attributes:
        name: its folder.
        layout: its type, chunks and shards.
        remedy: the last words of the error of a damaged array.
    """

    name: str
    layout: Layout
    remedy: str

    def create(self, shape: Sequence[int]) -> tensorstore.TensorStore:
        """Open an array for writing, and create it if there is none.

        Raises:
            OSError: it cannot be written.
            UserError: the store cannot be written.
        """
        with writing(self.name):
            spec = self._tensorstore_spec()
            spec["metadata"] |= {"shape": list(shape)}
            return tensorstore.open(spec, create=True, open=True).result()

    def open(self) -> tensorstore.TensorStore:
        """Open an array for reading.

        Raises:
            UserError: it is missing, damaged or of another layout.
        """
        with self.reading():
            return tensorstore.open(
                self._tensorstore_spec(),
                context=reading_context(),
                recheck_cached_data=False,
                recheck_cached_metadata=False,
            ).result()

    def _tensorstore_spec(self) -> dict[str, Any]:
        return {
            "driver": "zarr3",
            "kvstore": tensorstore_location(self.name),
            "metadata": self.layout.metadata(),
            "fill_missing_data_reads": False,
            "store_data_equal_to_fill_value": True,
        }

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turn the errors of TensorStore, which have no common class, into one line that names the array."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{self.name}: is damaged or cannot be reached: {_reason(error)}; {self.remedy}") from None


@lru_cache
def reading_context() -> tensorstore.Context:
    """Return the context of all arrays that this process reads, which bounds their memory."""
    return tensorstore.Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}})


@contextmanager
def writing(name: str) -> Iterator[None]:
    """Turn TensorStore's errors of writing, of which only some are OSErrors, into OSError."""
    try:
        yield
    except (OSError, UserError):
        raise
    except Exception as error:
        raise OSError(f"{name}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return the message of TensorStore's error, without what only its authors need."""
    message = " ".join(str(error).split())
    return message.partition(" [source locations=")[0].partition(" [tensorstore_spec=")[0]


class ArrayWriter:
    """Writes an array piece by piece along its first axis, each shard when it is complete.

    Args:
        spec: of the array.
        array: the array, or a part of it with one axis less.
    """

    def __init__(self, spec: ArraySpec, array: tensorstore.TensorStore) -> None:
        self._spec = spec
        self._array = array
        self._shard_length = spec.layout.shard[len(spec.layout.shard) - array.ndim]
        self._pieces: list[np.ndarray] = []
        self._waiting = 0
        self._written = 0

    @property
    def length(self) -> int:
        """Number of items that have been appended."""
        return self._written + self._waiting

    def append(self, values: np.ndarray) -> None:
        """Add values after those that have been added.

        Raises:
            OSError: a shard that cannot be written.
        """
        self._pieces.append(values)
        self._waiting += len(values)
        if self._waiting >= self._shard_length:
            self._write_complete_shards()

    def finish(self) -> None:
        """Write what is left.

        Raises:
            OSError: it cannot be written.
        """
        if self._waiting:
            self._write(np.concatenate(self._pieces))
        self._pieces = []
        self._waiting = 0

    def _write_complete_shards(self) -> None:
        values = np.concatenate(self._pieces)
        stop = len(values) // self._shard_length * self._shard_length
        for start in range(0, stop, self._shard_length):
            self._write(values[start : start + self._shard_length])
        self._pieces = [values[stop:]]
        self._waiting = len(values) - stop

    def _write(self, values: np.ndarray) -> None:
        stop = self._written + len(values)
        with writing(self._spec.name):
            self._array[self._written : stop].write(values.astype(self._spec.layout.dtype, copy=False)).result()
        self._written = stop


class StoredArray:
    """An array of a known length, opened when it is first read. The chunks that were read last are in memory.

    Args:
        spec: of the array.
        length: items of its first axis.
    """

    def __init__(self, spec: ArraySpec, length: int) -> None:
        self.spec = spec
        self._length = length
        self._array: tensorstore.TensorStore | None = None
        self._chunk = lru_cache(CHUNKS_IN_MEMORY)(self._read_chunk)

    def __len__(self) -> int:
        return self._length

    def read(self, start: int, stop: int) -> Integer[np.ndarray, "items ..."]:
        """Return the items `[start, stop)`.

        Raises:
            UserError: the array is damaged, or its store cannot be read.
        """
        size = self.spec.layout.chunk[0]
        first = start // size
        last = max(stop - 1, start) // size
        if last - first > 1:
            return self._read(start, stop)
        items = self._chunk(first)[start - first * size : stop - first * size]
        if last > first:
            items = np.concatenate([items, self._chunk(last)[: stop - last * size]])
        return items

    def _read_chunk(self, number: int) -> Integer[np.ndarray, "items ..."]:
        size = self.spec.layout.chunk[0]
        return self._read(number * size, min((number + 1) * size, self._length))

    def _read(self, start: int, stop: int) -> Integer[np.ndarray, "items ..."]:
        with self.spec.reading():
            if self._array is None:
                self._array = self.spec.open()
            items: Integer[np.ndarray, items] = self._array[start:stop].read().result()
        return items
