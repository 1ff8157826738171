"""Arrays in chunks, and sorted ones with a sparse index: equal to NumPy's, and opened without reading them."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tensorstore

from t5x_lite.data import sorted_arrays
from t5x_lite.data.chunked_arrays import MAX_LENGTH, ArraySpec, ArrayWriter, Layout, StoredArray
from t5x_lite.data.config import DataConfig
from t5x_lite.data.row_rule import RowRule
from t5x_lite.data.sorted_arrays import SortedArrayWriter, open_sorted
from t5x_lite.errors import UserError
from t5x_lite.objectives import Causal
from tests.conftest import REPOSITORY
from tests.objectives.vocabulary import context


def test_pieces_of_any_size_become_one_array(tmp_path: Path) -> None:
    """Compared with the array that TensorStore itself reads, without our layout."""
    rng = np.random.default_rng(0)
    pieces = [rng.integers(-(2**60), 2**60, (length, 2)) for length in (0, 1, 7, 8, 9, 40, 3)]
    spec = ArraySpec(str(tmp_path / "a"), Layout("int64", (4, 2), (8, 2)), "plan again")
    writer = ArrayWriter(spec, spec.create([MAX_LENGTH, 2]))
    for piece in pieces:
        writer.append(piece)
    assert writer.length == 68
    writer.finish()
    expected = np.concatenate(pieces)
    np.testing.assert_array_equal(StoredArray(spec, 68).read(0, 68), expected)
    np.testing.assert_array_equal(StoredArray(spec, 68).read(30, 41), expected[30:41])
    plain = tensorstore.open({"driver": "zarr3", "kvstore": f"file://{spec.name}/"}).result()
    np.testing.assert_array_equal(plain[:68].read().result(), expected)
    assert len(list((tmp_path / "a" / "c").iterdir())) == 9
    with pytest.raises(UserError, match=r"/a: is damaged or cannot be reached: NOT_FOUND: chunk .* plan again"):
        StoredArray(spec, 80).read(70, 75)


def test_a_writer_that_begins_again_writes_over_what_is_there(tmp_path: Path) -> None:
    spec = ArraySpec(str(tmp_path / "a"), Layout("uint16", (4,), (8,)), "")
    for values in (np.arange(20), np.arange(30)[::-1]):
        writer = ArrayWriter(spec, spec.create([MAX_LENGTH]))
        writer.append(values)
        writer.finish()
    assert StoredArray(spec, 30).read(0, 30).tolist() == list(range(30))[::-1]
    other = ArraySpec(spec.name, Layout("uint32", (4,), (8,)), "plan again")
    with pytest.raises(UserError, match="plan again"):
        StoredArray(other, 30).read(0, 1)


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 1000])
def test_a_sorted_array_is_searched_as_numpy_searches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    for module_name, value in (("BLOCK", 8), ("VALUES", Layout("int64", (8,), (64,)))):
        monkeypatch.setattr(sorted_arrays, module_name, value)
    rng = np.random.default_rng(count)
    values = np.cumsum(np.append(0, rng.integers(0, 4, count)))  # with equal values: empty documents
    name = str(tmp_path / "starts")
    writer = SortedArrayWriter(name)
    for piece in np.array_split(values, 5):
        writer.append(piece)
    writer.finish()
    stored = open_sorted(name, len(values), "")
    np.testing.assert_array_equal(stored[:], values)
    assert (len(stored), stored[0], stored[-1]) == (len(values), values[0], values[-1])
    np.testing.assert_array_equal(stored[3:14], values[3:14])
    places = rng.integers(0, len(values), 20)
    np.testing.assert_array_equal(stored.take(places), values[places])
    wanted = np.arange(-2, values[-1] + 3)
    for side in ("left", "right"):
        np.testing.assert_array_equal(stored.search(wanted, side), np.searchsorted(values, wanted, side))
    for start in range(0, int(values[-1]), max(int(values[-1]) // 40, 1)):
        for stop in {start + 1, min(start + 17, int(values[-1])), int(values[-1])}:
            positions = np.arange(start, stop)
            expected = np.searchsorted(values, positions, side="right") - 1
            np.testing.assert_array_equal(stored.intervals(start, stop), expected)


OPEN_CORPUS = """
import pickle, sys
from pathlib import Path
import numpy as np
from t5x_lite.data.chunked_arrays import reading_context
from t5x_lite.data.corpus import Corpus
from t5x_lite.data.corpus_files import CHUNK_TOKENS
from t5x_lite.data.row_store import open_rows
from t5x_lite.data.sorted_arrays import BLOCK
def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
def count_reads():
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counters["syscr"])
rule = pickle.loads(bytes.fromhex(sys.argv[2]))
memory_before = resident_bytes()
reads_before = count_reads()
corpus = Corpus(sys.argv[1], "train")
row_plan = open_rows(corpus, rule)
opening_reads = count_reads() - reads_before
memory = resident_bytes() - memory_before
reads = set()
for block in np.random.default_rng(0).integers(corpus.documents // BLOCK, size=20).tolist():
    # A window in one chunk, with documents of one block. A unit of the corpus has 10^8 tokens.
    unit, place = divmod(block * BLOCK * 1000, 10**8)
    first = unit * 10**8 + place // CHUNK_TOKENS * CHUNK_TOKENS + CHUNK_TOKENS
    reading_context.cache_clear()
    corpus = Corpus(sys.argv[1], "train")
    before = count_reads()
    tokens = corpus.read_spans([(first, first + 2048)])
    corpus.offsets.intervals(first, first + 2048)
    reads.add(count_reads() - before)
    assert len(tokens) == 2048
for row in np.random.default_rng(0).integers(row_plan.rows, size=1000).tolist():
    row_plan.read(row)
print(opening_reads, memory, resident_bytes() - memory_before, *reads, corpus.documents, row_plan.rows)
"""


@pytest.mark.slow
def test_a_corpus_of_a_billion_documents_costs_what_a_small_one_costs(
    import_benchmark: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    write_linked_corpus = import_benchmark("linked_corpus").write_linked_corpus
    rule = RowRule(DataConfig(packing="documents"), Causal(), context(2048))
    figures = []
    for documents in (10**5, 10**9):
        folder = tmp_path / f"text-{documents}"
        write_linked_corpus(folder, rule, documents)
        command = [sys.executable, "-c", OPEN_CORPUS, str(folder), pickle.dumps(rule).hex()]
        output = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
        opening_reads, memory, memory_later, reads, document_count, row_count = map(float, output.split())
        assert (document_count, row_count) == (documents, documents // 2)
        figures.append((memory, memory_later, reads, opening_reads))
    small, large = figures
    assert large[0] - small[0] < 200e6
    assert large[1] - small[1] < 200e6
    assert large[3] == small[3]
    # The small one has one shard of starts, of which the places of the chunks were read when it was opened.
    assert large[2] == small[2] + 1
