"""The start of each process: what it reads does not grow with the corpus or with the number of processes."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark of the start of a run, `python tools/bench.py scaling`."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "tools"))
    yield importlib.import_module("benchmarks.scaling")
    sys.modules.pop("benchmarks.scaling", None)


def test_the_start_of_a_process_reads_as_much_of_a_large_corpus_as_of_a_small_one(
    scaling: ModuleType, tmp_path: Path
) -> None:
    """Ten million documents have an index and a plan of 336 MB; besides mapped pages, 100 shards have names."""
    figures = {}
    for documents in (10**5, 10**7):
        folder = tmp_path / str(documents)
        folder.mkdir()
        scaling.write_sparse_corpus(folder, documents)
        figures[documents] = scaling.measure_start(folder, 1)
    small, large = figures[10**5], figures[10**7]
    assert large["read_calls"] == small["read_calls"]
    # Each of 32 rows touches few pages of each file, and the system maps 16 pages around each.
    assert large["read_bytes"] < 8e6
    assert large["memory_bytes"] < 8e6


@pytest.mark.slow
def test_processes_that_start_together_read_as_much_each_as_one_alone(scaling: ModuleType, tmp_path: Path) -> None:
    scaling.write_sparse_corpus(tmp_path, 10**6)
    alone = scaling.measure_start(tmp_path, 1)
    together = scaling.measure_start(tmp_path, 4)
    assert together["read_calls"] == alone["read_calls"]
    assert together["read_bytes"] < 1.5 * alone["read_bytes"]
    assert together["join_seconds"] > 0
