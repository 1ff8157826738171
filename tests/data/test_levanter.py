"""Caches of Levanter, written here by TensorStore with the spec of `levanter/store/jagged_array.py`."""

import json
import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import tensorstore

from t5x_lite.cli import main
from t5x_lite.data.byte_tokenizer import Bytes
from t5x_lite.data.config import SourceConfig
from t5x_lite.data.sources import units
from t5x_lite.data.token_documents import token_documents
from t5x_lite.data.token_files import levanter
from t5x_lite.errors import UserError
from tests.data.test_token_files import EOS, TEXTS, ids

CHUNK = 4


def write_array(path: Path, values: np.ndarray, chunk: int) -> None:
    """Write an array as Levanter does: blosc inside of shards, and a length of 2^54."""
    inner = {"chunk_shape": [chunk], "codecs": [{"name": "blosc", "configuration": {"clevel": 5}}]}
    metadata = {
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2 * chunk]}},
        "codecs": [{"name": "sharding_indexed", "configuration": inner}],
    }
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path}/"}, "metadata": metadata}
    array = tensorstore.open(spec, create=True, dtype=values.dtype.name, shape=[2**54]).result()
    array[: len(values)].write(values).result()


def write_cache(folder: Path, documents: list[list[int]], chunk: int = CHUNK) -> None:
    ends = np.cumsum([len(document) for document in documents])
    write_array(folder / "input_ids" / "offsets", np.array([len(documents), *ends], np.int64), chunk)
    write_array(folder / "input_ids" / "data", np.array(list(chain.from_iterable(documents)), np.int32), chunk)
    ledger = {
        "total_num_rows": len(documents),
        "shard_rows": {"web": len(documents)},
        "is_finished": True,
        "finished_shards": ["web"],
        "field_counts": {"input_ids": int(ends[-1])},
        "metadata": {"preprocessor_metadata": {}},
    }
    (folder / "shard_ledger.json").write_text(json.dumps(ledger))


DOCUMENTS = [[*ids("a fox"), EOS], [*ids("b"), EOS], [], [*ids("the dog"), EOS]]


def read(folder: Path, smallest_unit: int = 2**20) -> list[list[list[int]]]:
    pieces = units(SourceConfig(files=(str(folder),), format="levanter"), smallest_unit=smallest_unit)
    return [[document.tolist() for document in token_documents(unit, Bytes())] for unit in pieces]


def test_rows_of_a_cache_are_documents(tmp_path: Path) -> None:
    write_cache(tmp_path, DOCUMENTS)
    expected = [ids("a fox"), ids("b"), ids("the dog")]
    assert read(tmp_path) == [expected]
    pieces = read(tmp_path, smallest_unit=12)
    assert list(chain.from_iterable(pieces)) == expected
    assert len(pieces) == 6  # of three tokens, from 16


def test_long_documents_span_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t5x_lite.data.token_files.levanter.BLOCK", 10)
    rng = np.random.default_rng(0)
    documents = [rng.integers(3, 259, length).tolist() for length in rng.integers(0, 40, 30)]
    write_cache(tmp_path, documents, chunk=64)
    assert read(tmp_path) == [[document for document in documents if document]]


def test_prepare_reads_a_cache_and_its_validation(
    tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cache(tmp_path / "train", DOCUMENTS)
    write_cache(tmp_path / "validation", DOCUMENTS[:1])
    words = [f"data.files={tmp_path}/train", f"data.validation_files={tmp_path}/validation", "data.format=levanter"]
    words += ["tokenizer=bytes", f"data.cache_dir={tmp_path}/cache", "train.seq_len=4", "--json"]
    assert main(["prepare", str(tiny_config), *words]) == 0
    source = json.loads(capsys.readouterr().out)["sources"]["text"]
    assert source["train"]["documents"] == 3
    assert source["train"]["tokens"] == sum(map(len, TEXTS)) + 3
    assert source["validation"]["tokens"] == len("a fox") + 1


def test_an_id_that_the_tokenizer_lacks_is_named(tmp_path: Path) -> None:
    write_cache(tmp_path, [[5, 6], [7, 50256]])
    with pytest.raises(UserError, match=r"shard_ledger\.json: token 3 has the id 50256, but the tokenizer has"):
        read(tmp_path)


def test_a_changed_cache_is_another_corpus(tmp_path: Path) -> None:
    write_cache(tmp_path, DOCUMENTS)
    source = SourceConfig(files=(str(tmp_path),), format="levanter")
    before = units(source)[0].identity
    assert units(source)[0].identity == before
    write_cache(tmp_path / "other", [[5, 6]])
    shutil.copytree(tmp_path / "other", tmp_path, dirs_exist_ok=True)
    assert units(source)[0].identity != before


def test_unfinished_and_damaged_caches_are_refused(tmp_path: Path) -> None:
    write_cache(tmp_path, DOCUMENTS)
    ledger = tmp_path / "shard_ledger.json"
    content = json.loads(ledger.read_text())
    for change, message in (
        ({"is_finished": False}, "has not finished"),
        ({"total_num_rows": 3}, "has 4 documents, but shard_ledger.json 3"),
        ({"total_num_rows": "x"}, "is not a ledger of Levanter: total_num_rows"),
    ):
        ledger.write_text(json.dumps(content | change))
        with pytest.raises(UserError, match=message):
            read(tmp_path)
    ledger.write_text(json.dumps(content))
    chunk = tmp_path / "input_ids" / "data" / "c" / "1"
    stored = chunk.read_bytes()
    chunk.write_bytes(stored[:-5])
    with pytest.raises(UserError, match=r"input_ids/data: cannot be read"):
        read(tmp_path)
    # TensorStore reads a missing file as zeros.
    chunk.unlink()
    levanter._open_cache.cache_clear()  # as in a new process
    with pytest.raises(UserError, match=r"data/c/1: does not exist, but the cache has 16 numbers"):
        read(tmp_path)
    (tmp_path / "input_ids" / "data" / "zarr.json").unlink()
    levanter._open_cache.cache_clear()
    with pytest.raises(UserError, match="cannot be read as an array of Zarr 3"):
        read(tmp_path)
