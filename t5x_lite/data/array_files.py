"""Arrays in `.npy` files that need not fit in memory: written piece by piece, and mapped into memory to read."""

import os
import zlib
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from jaxtyping import Int64

BLOCK_BYTES = 2**22
"""Bytes of a file that are read at once to verify it."""


class ArrayFile:
    """Writes an int64 array piece by piece, under a temporary name until all of it is there.

    Use as a context manager: without an exception the file gets its name at the end, once its content is on the disk.

    Args:
        path: the file, which ends in `.npy`.
        columns: size of the second axis; None for an array of one axis.
    """

    def __init__(self, path: Path, columns: int | None = None) -> None:
        self._path = path
        self._temporary = path.with_suffix(".tmp")
        self._item_shape = () if columns is None else (columns,)
        self.length = 0
        self._file = self._temporary.open("wb")
        _write_header(self._file, (0, *self._item_shape))

    def append(self, values: np.ndarray) -> None:
        """Write the values after those that have been written, along the first axis."""
        assert values.shape[1:] == self._item_shape
        self.length += len(values)
        self._file.write(np.ascontiguousarray(values, np.int64).data)

    def __enter__(self) -> "ArrayFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._file:
            if error is None:
                self._file.seek(0)
                _write_header(self._file, (self.length, *self._item_shape))
                self._file.flush()
                os.fsync(self._file.fileno())
        if error is None:
            self._temporary.replace(self._path)
        else:
            self._temporary.unlink(missing_ok=True)


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Write the header of a `.npy` file. NumPy pads it so that its size does not depend on the length of the array."""
    description = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.int64)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, description)


def map_array(path: Path, columns: int | None = None) -> Int64[np.ndarray, "..."]:
    """Return the array in a file without reading it: the operating system loads the pages that are used.

    All processes of a machine share these pages. They do not count as memory of a process that must fit.

    Args:
        path: the file.
        columns: size of the second axis; None for an array of one axis.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is too short, or has no header of such an array.
    """
    try:
        values = np.load(path, mmap_mode="r").view(np.ndarray)
    except OSError:
        raise
    except Exception as error:  # of NumPy, and of Python's parser and tokenizer, which read the header
        raise ValueError(str(error) or repr(error)) from None
    item_shape = () if columns is None else (columns,)
    if values.dtype != np.int64 or values.ndim != 1 + len(item_shape) or values.shape[1:] != item_shape:
        raise ValueError(f"it has {values.dtype} values of shape {values.shape}")
    return values


def file_checksum(path: Path) -> int:
    """Return the CRC-32 of a file, of which one block at a time is in memory.

    Raises:
        OSError: the file cannot be read.
    """
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            checksum = zlib.crc32(block, checksum)
    return checksum
