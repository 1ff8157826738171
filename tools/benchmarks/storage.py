"""Windows of a token stream at random places: the token corpus, compared with bare Zarr and with ArrayRecord.

The token corpus also looks up the documents of the windows. Each case runs in a process of its own, which reports the
time and memory to open the store and what one window costs. Reads are those that the operating system counted. They are
the requests that a bucket would see.
"""

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int64, UInt16

from benchmarks.linked_corpus import DOCUMENTS_OF_A_UNIT, TOKENS_OF_A_DOCUMENT, write_linked_corpus
from benchmarks.scaling import row_rule
from t5x_lite.data.corpus import Corpus
from t5x_lite.data.corpus_files import SHARD_TOKENS as SHARD

WINDOW = 2049
"""Tokens of a row of 2,048, with the target of the last."""
RECORD_TOKENS = 512
"""Tokens of a record: the mean length of a document, which is at least one record."""
CHUNK_TOKENS = 2**14
SHARD_TOKENS = 2**24
TOKENS = (10**7, 10**9)
TOKENS_IF_QUICK = (10**6, 10**7)
WINDOWS = 2000
STORES = ("array_record", "zarr", "corpus")

ReadWindow: TypeAlias = Callable[[int], UInt16[np.ndarray, "window"]]
"""Returns the window that begins at a token."""


def measure(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Measure both stores at two sizes. A figure is the median of the rounds."""
    table = []
    with tempfile.TemporaryDirectory() as name:
        for tokens in TOKENS_IF_QUICK if quick else TOKENS:
            for store in STORES:
                path = Path(name) / f"{store}{tokens}"
                _WRITERS[store](path, tokens)
                results = [_measure_in_process(store, path, tokens) for _ in range(rounds)]
                row: dict[str, Any] = {"store": store, "tokens": tokens}
                for column in results[0]:
                    row[column] = float(np.median([result[column] for result in results]))
                table.append(row)
    return table


def _measure_in_process(store: str, path: Path, tokens: int) -> dict[str, float]:
    repository = Path(__file__).resolve().parents[2]
    variables = os.environ | {"PYTHONPATH": f"{repository}:{repository / 'tools'}"}
    command = [sys.executable, __file__, store, str(path), str(tokens)]
    done = subprocess.run(command, env=variables, capture_output=True, check=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _block_of_tokens(start: int, stop: int) -> UInt16[np.ndarray, "tokens"]:
    """Return the tokens `[start, stop)` of a stream in which the place of a token tells its value."""
    return (np.arange(start, stop) % 50021).astype(np.uint16)


def _write_array_record(path: Path, tokens: int) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for start in range(0, tokens, RECORD_TOKENS):
        writer.write(_block_of_tokens(start, min(start + RECORD_TOKENS, tokens)).tobytes())
    writer.close()


def _open_array_record(path: Path) -> ReadWindow:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path), "readahead_buffer_size:0", file_reader_buffer_size=2**15)

    def read(start: int) -> UInt16[np.ndarray, "window"]:
        first = start // RECORD_TOKENS
        stop = (start + WINDOW - 1) // RECORD_TOKENS + 1
        records = [np.frombuffer(record, np.uint16) for record in reader.read(first, stop)]
        skipped = start - first * RECORD_TOKENS
        return np.concatenate(records)[skipped : skipped + WINDOW]

    return read


def _zarr_spec(path: Path) -> dict[str, Any]:
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}, "fill_missing_data_reads": False}


def _write_zarr(path: Path, tokens: int) -> None:
    import tensorstore

    sharding = {
        "chunk_shape": [CHUNK_TOKENS],
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
    }
    metadata = {
        "shape": [tokens],
        "data_type": "uint16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [SHARD_TOKENS]}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }
    spec = _zarr_spec(path) | {"metadata": metadata, "create": True, "store_data_equal_to_fill_value": True}
    array = tensorstore.open(spec).result()
    for start in range(0, tokens, SHARD_TOKENS):
        stop = min(start + SHARD_TOKENS, tokens)
        array[start:stop].write(_block_of_tokens(start, stop)).result()


def _open_zarr(path: Path) -> ReadWindow:
    import tensorstore

    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 2**26}})
    array = tensorstore.open(
        _zarr_spec(path), open=True, context=context, recheck_cached_data=False, recheck_cached_metadata=False
    ).result()

    def read(start: int) -> UInt16[np.ndarray, "window"]:
        values: UInt16[np.ndarray, window] = array[start : start + WINDOW].read().result()
        return values

    return read


def _write_corpus(path: Path, tokens: int) -> None:
    """Write a corpus whose shards are links to one, so that it takes no room. Its tokens repeat in each of them."""
    path.mkdir()
    write_linked_corpus(path, row_rule(), tokens // TOKENS_OF_A_DOCUMENT)


def _open_corpus(path: Path) -> ReadWindow:
    corpus = Corpus(path, "train")

    def read(start: int) -> UInt16[np.ndarray, "window"]:
        window = corpus.read_spans([(start, start + WINDOW)])
        documents = corpus.offsets.intervals(start, start + WINDOW)
        assert len(documents) == WINDOW
        return window.astype(np.uint16)

    return read


_WRITERS: dict[str, Callable[[Path, int], None]] = {
    "array_record": _write_array_record,
    "zarr": _write_zarr,
    "corpus": _write_corpus,
}
_OPENERS: dict[str, Callable[[Path], ReadWindow]] = {
    "array_record": _open_array_record,
    "zarr": _open_zarr,
    "corpus": _open_corpus,
}


def _io_counters() -> Int64[np.ndarray, "2"]:
    """Return the reads of this process, and their bytes, including those that the page cache answered."""
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return np.array([int(counters["syscr"]), int(counters["rchar"])])


def _memory_megabytes() -> float:
    """Return the resident memory of this process."""
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return resident_pages * resource.getpagesize() / 1e6


def _measure_store(store: str, path: Path, tokens: int) -> dict[str, float]:
    """Measure opening with the first window, then random windows, then windows in order."""
    __import__("array_record.python.array_record_module" if store == "array_record" else "tensorstore")
    memory_before = _memory_megabytes()
    started = time.perf_counter()
    read = _OPENERS[store](path)
    read(tokens // 2)
    open_seconds = time.perf_counter() - started
    open_memory = _memory_megabytes() - memory_before
    starts = np.random.default_rng(0).integers(0, tokens - WINDOW, WINDOWS)
    before = _io_counters()
    random_seconds = _time_windows(read, starts, store)
    reads, read_bytes = (_io_counters() - before) / WINDOWS
    ordered_seconds = _time_windows(read, np.arange(min(WINDOWS, tokens // WINDOW)) * WINDOW, store)
    return {
        "open ms": open_seconds * 1000,
        "open MB": open_memory,
        "reads/window": reads,
        "kB/window": read_bytes / 1000,
        "random Mtokens/s": len(starts) * WINDOW / random_seconds / 1e6,
        "in order Mtokens/s": min(WINDOWS, tokens // WINDOW) * WINDOW / ordered_seconds / 1e6,
        "memory MB": _memory_megabytes() - memory_before,
    }


def _time_windows(read: ReadWindow, starts: Int64[np.ndarray, "windows"], store: str) -> float:
    started = time.perf_counter()
    for start in starts.tolist():
        window = read(start)
        place = start + WINDOW - 1
        if store == "corpus":  # whose units have 10^8 tokens, in files of 2^23
            place = place % (DOCUMENTS_OF_A_UNIT * TOKENS_OF_A_DOCUMENT) % SHARD
        if int(window[-1]) != place % 50021:
            raise AssertionError(f"the window at {start} has wrong tokens")
    return time.perf_counter() - started


if __name__ == "__main__":
    print(json.dumps(_measure_store(sys.argv[1], Path(sys.argv[2]), math.floor(float(sys.argv[3])))))
