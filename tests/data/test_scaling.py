"""The start of each process: what it reads does not grow with the corpus or with the number of processes."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def scaling(import_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    """The benchmark of the start of a run, `python tools/bench.py scaling`."""
    return import_benchmark("scaling")


@pytest.mark.slow
def test_the_start_of_a_process_reads_as_much_of_a_large_corpus_as_of_a_small_one(
    scaling: ModuleType, tmp_path: Path
) -> None:
    """Ten million documents have an index and a plan of 280 MB; besides some chunks, 100 shards have counts."""
    figures = {}
    for documents in (10**5, 10**7):
        folder = tmp_path / str(documents)
        folder.mkdir()
        scaling.write_linked_corpus(folder, scaling.row_rule(), documents)
        figures[documents] = scaling.measure_start(folder, 1)
    small, large = figures[10**5], figures[10**7]
    # A row needs a chunk of three arrays each, and the places of the chunks in their shards, once for a shard.
    assert small["read_calls"] < large["read_calls"] < 5 * scaling.ROWS
    # A chunk of starts has 32 KB, one of spans has 64; the places of the chunks of three shards have 40.
    assert large["read_bytes"] < scaling.ROWS * 200e3
    assert large["memory_bytes"] < 20e6


@pytest.mark.slow
def test_processes_that_start_together_read_as_much_each_as_one_alone(scaling: ModuleType, tmp_path: Path) -> None:
    scaling.write_linked_corpus(tmp_path, scaling.row_rule(), 10**6)
    alone = scaling.measure_start(tmp_path, 1)
    together = scaling.measure_start(tmp_path, 4)
    assert together["read_calls"] == alone["read_calls"]
    assert together["read_bytes"] < 1.5 * alone["read_bytes"]
    assert together["join_seconds"] > 0
