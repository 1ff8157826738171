"""Sorted arrays that are searched without being held in memory.

The first value of each block of `BLOCK` values is in memory: the sparse index. A search finds its block there, and
reads that block alone, whatever the length of the array. A billion values have a sparse index of two megabytes.
"""

from collections.abc import Sequence
from typing import Literal, overload

import numpy as np
from jaxtyping import Int64, Integer

from t5x_lite.data.chunked_arrays import MAX_LENGTH, ArraySpec, ArrayWriter, Layout, Readable, StoredArray

BLOCK = 2**12
"""Values of a block, which is a chunk of the array."""
VALUES = Layout("int64", (BLOCK,), (2**22,))
SPARSE_INDEX = Layout("int64", (2**12,), (2**20,))

Side = Literal["left", "right"]
"""As for `numpy.searchsorted`: the place before equal values, or behind them."""


class SortedArray:
    """A sorted array of which some values at a time are read.

    Args:
        values: the values, in increasing order.
        sparse_index: the values 0, `BLOCK`, 2 · `BLOCK`, …
    """

    def __init__(self, values: Readable, sparse_index: Int64[np.ndarray, "blocks"]) -> None:
        self._values = values
        self._sparse_index = sparse_index

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, places: slice) -> Int64[np.ndarray, "values"]: ...
    @overload
    def __getitem__(self, places: int) -> int: ...
    def __getitem__(self, places: slice | int) -> Int64[np.ndarray, "values"] | int:
        if isinstance(places, slice):
            start, stop, _ = places.indices(len(self))
            if stop <= start:
                return np.zeros(0, np.int64)
            return self._values.read(start, stop).astype(np.int64, copy=False)
        place = range(len(self))[places]
        return int(self._values.read(place, place + 1)[0])

    def take(self, places: Integer[np.ndarray, "*shape"]) -> Int64[np.ndarray, "*shape"]:
        """Return the values at some places, which are near each other: what is between them is read, too."""
        if not places.size:
            return np.zeros(places.shape, np.int64)
        first = int(places.min())
        return self[first : int(places.max()) + 1][places - first]

    def search(
        self, targets: Sequence[int] | Integer[np.ndarray, "targets"], side: Side = "left"
    ) -> Int64[np.ndarray, "targets"]:
        """Return what `numpy.searchsorted` returns. Each block that is needed is read once."""
        values_sought = np.asarray(targets, np.int64)
        blocks = np.searchsorted(self._sparse_index, values_sought, side=side) - 1
        places = np.zeros(len(values_sought), np.int64)
        for block in np.unique(blocks[blocks >= 0]).tolist():
            in_block = blocks == block
            values = self._read_block(block)
            places[in_block] = block * BLOCK + np.searchsorted(values, values_sought[in_block], side=side)
        return places

    def intervals(self, start: int, stop: int) -> Int64[np.ndarray, "positions"]:
        """Return the index of the interval that each position in `[start, stop)` is in.

        Interval n begins at value n, and ends before the next.
        """
        first_block, last_block = np.searchsorted(self._sparse_index, (start, stop - 1), side="right") - 1
        first_value = int(first_block) * BLOCK
        borders = self[first_value : (int(last_block) + 1) * BLOCK]
        first, last = np.searchsorted(borders, (start, stop - 1), side="right") - 1
        if first == last:
            return np.full(stop - start, first_value + first)
        ends = np.append(borders[first + 1 : last + 1], stop)
        lengths = np.diff(ends, prepend=start)
        return np.repeat(np.arange(first_value + first, first_value + last + 1), lengths)

    def _read_block(self, block: int) -> Int64[np.ndarray, "values"]:
        return self[block * BLOCK : (block + 1) * BLOCK]


class SortedArrayWriter:
    """Writes a sorted array piece by piece, and its sparse index beside it, as `NAME.sparse`.

    Args:
        name: the folder of the array.
    """

    def __init__(self, name: str) -> None:
        values = ArraySpec(name, VALUES, "")
        sparse = ArraySpec(f"{name}.sparse", SPARSE_INDEX, "")
        self._values = ArrayWriter(values, values.create([MAX_LENGTH]))
        self._sparse = ArrayWriter(sparse, sparse.create([MAX_LENGTH]))

    def append(self, values: Int64[np.ndarray, "values"]) -> None:
        """Add values after those that have been added.

        Raises:
            OSError: a shard that cannot be written.
        """
        self._sparse.append(values[-self._values.length % BLOCK :: BLOCK])
        self._values.append(values)

    def finish(self) -> None:
        """Write what is left.

        Raises:
            OSError: it cannot be written.
        """
        self._values.finish()
        self._sparse.finish()


def open_sorted(name: str, length: int, remedy: str) -> SortedArray:
    """Return a sorted array, of which the sparse index is read now.

    Args:
        name: the folder of the array.
        length: number of its values.
        remedy: the last words of the error of a damaged array.

    Raises:
        UserError: the sparse index is damaged, or its store cannot be read.
    """
    blocks = (length + BLOCK - 1) // BLOCK
    sparse_index = StoredArray(ArraySpec(f"{name}.sparse", SPARSE_INDEX, remedy), blocks).read(0, blocks)
    return SortedArray(StoredArray(ArraySpec(name, VALUES, remedy), length), sparse_index)
