"""The index of a corpus: written from the shards, and opened without reading it."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from t5x_lite.data.array_files import ArrayFile, map_array
from t5x_lite.data.byte_tokenizer import Bytes
from t5x_lite.data.config import DataConfig
from t5x_lite.data.corpus import Corpus
from t5x_lite.data.prepare import prepare_corpus
from t5x_lite.data.row_rule import RowRule
from t5x_lite.objectives import Causal
from tests.conftest import REPOSITORY
from tests.objectives.vocabulary import context


def test_an_array_file_is_the_pieces_and_absent_until_all_are_written(tmp_path: Path) -> None:
    pieces = [np.arange(8).reshape(4, 2), np.zeros((0, 2), np.int64), np.full((1, 2), -(2**60))]
    path = tmp_path / "a.npy"
    with ArrayFile(path, columns=2) as file:
        for piece in pieces:
            file.append(piece)
            assert not path.exists()
    np.testing.assert_array_equal(np.load(path), np.concatenate(pieces))
    np.testing.assert_array_equal(map_array(path, columns=2), np.load(path))
    with pytest.raises(KeyboardInterrupt), ArrayFile(path, columns=2) as file:
        file.append(pieces[0])
        raise KeyboardInterrupt
    assert len(np.load(path)) == 5
    assert [name.name for name in tmp_path.iterdir()] == ["a.npy"]


def test_an_array_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npy"
    synced: list[tuple[int, bool]] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append((os.fstat(number).st_size, path.exists())))
    with ArrayFile(path) as file:
        file.append(np.arange(3))
    assert synced == [(path.stat().st_size, False)]


@pytest.mark.parametrize("parts", ["none", "line"])
def test_a_corpus_of_a_version_without_an_index_gets_one(prose: Path, tmp_path: Path, parts: str) -> None:
    settings = {"files": str(prose / "*.txt"), "cache_dir": str(tmp_path), "parts": parts, "validation_fraction": 0.0}
    data = DataConfig.model_validate(settings)
    folder = prepare_corpus(data.sources[0], data, Bytes(), smallest_unit=2000, record_tokens=100)
    index_files = [*folder.glob("train.*.npy"), *folder.glob("validation.*.npy"), folder / "index.json"]
    assert len(index_files) == (5 if parts == "none" else 7)
    shards = [np.load(path) for path in sorted(folder.glob("0*.train.npy"))]
    assert len(shards) > 10
    record_lengths, begins_document = np.concatenate(shards).T
    for path in index_files:
        path.unlink()
    tokenised = {path: path.stat().st_mtime_ns for path in folder.glob("*.array_record")}
    assert prepare_corpus(data.sources[0], data, Bytes(), smallest_unit=2000, record_tokens=100) == folder
    assert {path: path.stat().st_mtime_ns for path in tokenised} == tokenised
    corpus = Corpus(folder, "train")
    record_starts = np.cumsum(record_lengths) - record_lengths
    assert corpus.offsets.tolist() == [*record_starts[begins_document == 1], record_lengths.sum()]
    if parts == "line":
        lengths = np.concatenate([np.load(path) for path in sorted(folder.glob("0*.train.parts.npy"))])
        assert corpus.parts.tolist() == [0, *np.cumsum(lengths)]
    separator = "" if parts == "line" else "\n"  # lines lose their breaks
    texts = [path.read_text().replace("\n", separator) for path in sorted(prose.glob("*.txt"))]
    decoded = [Bytes().decode(corpus.document(number)) for number in range(corpus.documents)]
    assert decoded == texts


OPEN_CORPUS = """
import pickle, sys, time
from pathlib import Path
from t5x_lite.data.corpus import Corpus
from t5x_lite.data.row_store import open_rows
def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
rule = pickle.loads(bytes.fromhex(sys.argv[2]))
memory_before = resident_bytes()
start = time.perf_counter()
corpus = Corpus(Path(sys.argv[1]), "train")
row_plan = open_rows(corpus, rule)
print(time.perf_counter() - start, resident_bytes() - memory_before, corpus.documents, row_plan.rows)
"""


def write_sparse_array(path: Path, *shape: int, last: int = 0) -> None:
    """Write a file of zeros, except for the last number, that takes no room on the disk."""
    with path.open("wb") as file:
        description = {"descr": "<i8", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, description)
        file.seek(8 * (int(np.prod(shape)) - 1), os.SEEK_CUR)
        file.write(np.int64(last).tobytes())


@pytest.mark.slow
def test_a_corpus_of_a_billion_documents_opens_at_once_and_in_little_memory(tmp_path: Path) -> None:
    documents = 10**9
    shard_records = [10**5] * (documents // 10**5)
    rule = RowRule(DataConfig(packing="documents"), Causal(), context(2048))
    rows = documents // 5
    for name, length in (("documents", documents + 1), ("records", documents + 1)):
        write_sparse_array(tmp_path / f"train.{name}.npy", length, last=400 * documents)
    write_sparse_array(tmp_path / f"rows-{rule.fingerprint}.train.spans.npy", documents, 2)
    write_sparse_array(tmp_path / f"rows-{rule.fingerprint}.train.starts.npy", rows + 1)
    counts = {"tokens": 400 * documents, "documents": documents, "text_bytes": 1600 * documents, "replaced": 0}
    units = [f"{number:06d}" for number in range(len(shard_records))]
    (tmp_path / "corpus.json").write_text(json.dumps({"shards": units, "splits": {"train": counts}}))
    (tmp_path / "index.json").write_text(
        json.dumps({"records": {"train": shard_records}, "has_parts": False, "checksums": {}})
    )
    command = [sys.executable, "-c", OPEN_CORPUS, str(tmp_path), pickle.dumps(rule).hex()]
    output = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    seconds, memory, document_count, row_count = map(float, output.split())
    assert (document_count, row_count) == (documents, rows)
    assert seconds < 2
    assert memory < 200e6
