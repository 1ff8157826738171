"""The start of a run at size: time, memory and bytes read of each process, by documents and number of processes.

The arrays of the corpora have their full length, but only one real shard; all others are links to it. Reading them
costs what reading real ones from the page cache costs.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import IO, Any

import numpy as np

from benchmarks.linked_corpus import DOCUMENTS_OF_A_ROW, TOKENS_OF_A_DOCUMENT, write_linked_corpus
from t5x_lite.data.byte_tokenizer import Bytes
from t5x_lite.data.config import DataConfig
from t5x_lite.data.corpus import Corpus
from t5x_lite.data.row_rule import RowRule
from t5x_lite.data.row_store import open_rows
from t5x_lite.objectives import OBJECTIVES
from t5x_lite.objectives.objective import ExampleContext

DOCUMENTS = (10**5, 10**7, 10**9)
DOCUMENTS_IF_QUICK = (10**4, 10**6)
PROCESSES = (1, 2, 4, 8)
PROCESSES_IF_QUICK = (1, 2)
SEQ_LEN = 2048
ROWS = 32
"""Rows of the first batch that each process looks up."""


def measure(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Measure processes that start together, each of which opens the corpus and looks up the rows of its first batch.

    A round is a start of all processes; its figures are those of the slowest or largest process. `join` is the time in
    which the processes find each other.
    """
    table = []
    for documents in DOCUMENTS_IF_QUICK if quick else DOCUMENTS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_linked_corpus(folder, row_rule(), documents)
            for processes in PROCESSES_IF_QUICK if quick else PROCESSES:
                starts = [measure_start(folder, processes) for _ in range(max(rounds // 2, 1))]
                medians = {name: median(start[name] for start in starts) for name in starts[0]}
                table.append(
                    {
                        "documents": f"{documents:.0e}",
                        "processes": processes,
                        "open, ms": 1000 * medians["open_seconds"],
                        "memory, MB": medians["memory_bytes"] / 1e6,
                        "read, kB": medians["read_bytes"] / 1e3,
                        "read calls": int(medians["read_calls"]),
                        "join, s": medians["join_seconds"],
                    }
                )
    return table


def row_rule() -> RowRule:
    """Return the rule of the rows of the corpora: packed documents, for a causal model."""
    context = ExampleContext(SEQ_LEN, Bytes().vocabulary())
    return RowRule(DataConfig(packing="documents"), OBJECTIVES["causal"](), context)


def measure_start(folder: Path, processes: int) -> dict[str, float]:
    """Start processes that open a corpus at the same time; return the largest value of each of their figures."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    repository = Path(__file__).resolve().parents[2]
    variables = os.environ | {"PYTHONPATH": f"{repository}:{repository / 'tools'}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__, str(folder), str(processes), str(port)]
    workers = [
        subprocess.Popen(
            [*command, str(number)], env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for number in range(processes)
    ]
    try:
        for worker in workers:
            _pipe(worker.stdout).readline()  # imports are done
        for worker in workers:
            _pipe(worker.stdin).write("go\n")
            _pipe(worker.stdin).flush()
        figures = [json.loads(worker.communicate()[0].splitlines()[-1]) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return {name: max(figure[name] for figure in figures) for name in figures[0]}


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def open_and_report(arguments: Sequence[str]) -> None:
    """Run one process: wait for a line, join the others, open the corpus, and print the figures as JSON."""
    folder, processes, port, number = arguments
    import jax
    from jax.experimental import multihost_utils

    print("ready", flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    if int(processes) > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(number))
        multihost_utils.sync_global_devices("all are there")
    join_seconds = time.perf_counter() - started
    figures = {"join_seconds": join_seconds} | _measure_open(Path(folder))
    if int(processes) > 1:
        multihost_utils.sync_global_devices("all are done")
    print(json.dumps(figures), flush=True)


def _measure_open(folder: Path) -> dict[str, float]:
    """Open a corpus and look up the rows of a batch; return the time, memory and bytes that this takes."""
    rule = row_rule()
    before = _read_counters()
    started = time.perf_counter()
    row_plan = open_rows(Corpus(folder, "train"), rule)
    rows = np.random.default_rng(0).integers(row_plan.rows, size=ROWS)
    for row in rows.tolist():
        row_plan.first_token(row)
        row_plan.corpus.offsets.search([TOKENS_OF_A_DOCUMENT * DOCUMENTS_OF_A_ROW * row])
    seconds = time.perf_counter() - started
    after = _read_counters()
    used = {name: after[name] - before[name] for name in before}
    return {
        "open_seconds": seconds,
        "memory_bytes": used["VmRSS"],
        "read_bytes": used["rchar"],
        "read_calls": used["syscr"],
    }


def _read_counters() -> dict[str, int]:
    """Return resident bytes, and the bytes and calls of `read`, of this process."""
    counters = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "VmRSS":
            counters[name] = 1024 * int(value.split()[0])
    for line in Path("/proc/self/io").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in {"rchar", "syscr"}:
            counters[name] = int(value)
    return counters


if __name__ == "__main__":
    open_and_report(sys.argv[1:])
