"""Random access to the records of many shards."""

import threading
from collections.abc import Sequence

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from t5x_lite.data.shards import ShardFiles, damaged
from t5x_lite.errors import UserError

READER_BUFFER = 2**15
"""Bytes that are read at once. A larger buffer reads more than a record has."""


class ShardReader:
    """Reads records by their number in a sequence of shards. It is thread-safe, and opens a shard at its first record.

    ArrayRecord's own data source asks for a list of records, for which a reader goes over all records of its shard; a
    range of records takes the same time whatever the shard's size.

    Args:
        shards: the shards.
        record_counts: number of records in each shard.
    """

    def __init__(self, shards: Sequence[ShardFiles], record_counts: Sequence[int]) -> None:
        self._shards = shards
        self._stops = np.cumsum(record_counts)
        self._starts = self._stops - record_counts
        self._readers: dict[int, ArrayRecordReader] = {}
        self._lock = threading.Lock()

    def read(self, start: int, stop: int) -> list[bytes]:
        """Return the records `[start, stop)`.

        Raises:
            UserError: a file is damaged.
        """
        records: list[bytes] = []
        while start < stop:
            shard = int(np.searchsorted(self._stops, start, side="right"))
            first = int(self._starts[shard])
            shard_stop = min(stop, int(self._stops[shard]))
            try:
                records += self._open(shard).read(start - first, shard_stop - first)
            except (
                IndexError,
                OSError,
                RuntimeError,
                TypeError,
                ValueError,
            ) as error:  # not classes of ArrayRecord
                raise self.damaged(start, str(error)) from None
            start = shard_stop
        return records

    def damaged(self, record: int, reason: str) -> UserError:
        """Return the error for a damaged record, by its number."""
        shard = self._shards[int(np.searchsorted(self._stops, record, side="right"))]
        return damaged(shard.folder, shard.records, reason)

    def _open(self, shard: int) -> ArrayRecordReader:
        with self._lock:
            if shard not in self._readers:
                path = str(self._shards[shard].records)
                options = "readahead_buffer_size:0"
                self._readers[shard] = ArrayRecordReader(path, options, file_reader_buffer_size=READER_BUFFER)
            return self._readers[shard]
