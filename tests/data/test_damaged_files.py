"""Flipped and missing bytes of data files: an error that names the file, and never other records."""

import gzip
import json
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource
from backports import zstd
from pyarrow import parquet

from t5x_lite.data import sources
from t5x_lite.data.byte_tokenizer import Bytes
from t5x_lite.data.config import DataConfig, SourceConfig
from t5x_lite.data.corpus import Corpus
from t5x_lite.data.corpus_index import write_index
from t5x_lite.data.corpus_lock import CorpusLock
from t5x_lite.data.files import TfdsRecords
from t5x_lite.data.prepare import prepare_corpus
from t5x_lite.data.record_files import read_record_file
from t5x_lite.data.corpus_files import SPLITS
from t5x_lite.errors import UserError

TEXTS = [f"document {number} has some words, {number * 7919} of them" for number in range(20)]
JSON_LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
CHECKED_ZSTD = {zstd.CompressionParameter.checksum_flag: 1}


def damaged(content: bytes, every: int = 1) -> Iterator[bytes]:
    """Yield the content with one bit flipped, for each byte in turn, and cut off at several places."""
    for position in range(0, len(content), every):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        yield bytes(flipped)
    for length in range(0, len(content), max(len(content) // 20, 1)):
        yield content[:length]


def positions_of_data(content: bytes, count: int) -> list[int]:
    """Return about `count` positions of bytes that are not zero: ArrayRecord files are padded with zeros."""
    positions = np.flatnonzero(np.frombuffer(content, np.uint8))
    return positions[:: max(len(positions) // count, 1)].tolist()


def assert_same_or_named(
    path: Path, read: Callable[[], list[str]], expected: list[str], content: bytes, changed_file: Path | None = None
) -> int:
    """Check that a damaged file is read as it was, or is an error of one line that names it. Returns 1 for an error.

    Args:
        path: what the error names.
        read: reads the file.
        expected: what it reads from the file as it was.
        content: of the damaged file.
        changed_file: the file, if the error may name another of its folder.
    """
    (changed_file or path).write_bytes(content)
    try:
        assert read() == expected
    except UserError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
        return 1
    return 0


@pytest.mark.parametrize(("ending", "compress"), [(".gz", gzip.compress), (".zst", None)])
def test_compressed_text(ending: str, compress: Callable[[bytes], bytes] | None, tmp_path: Path) -> None:
    content = compress(JSON_LINES) if compress else zstd.compress(JSON_LINES, options=CHECKED_ZSTD)
    path = tmp_path / f"a.jsonl{ending}"
    units = sources.units(SourceConfig(files=(str(write(path, content)),)))
    errors = 0
    for changed in damaged(content, every=3):
        errors += assert_same_or_named(
            path, lambda: [text for unit in units for _, text in sources.documents(unit)], TEXTS, changed
        )
        assert_same_or_named(path, lambda: record_texts(path), TEXTS, changed)
    assert errors > 0.3 * len(content)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def record_texts(path: Path) -> list[str]:
    return [record["text"] for _, record in read_record_file(str(path), ())]  # type: ignore[index]


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd"])
def test_parquet_pages_with_checksums(compression: str, tmp_path: Path) -> None:
    """Its footer has no checksum in this format: only the pages are flipped here; it is cut anywhere."""
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": TEXTS})
    parquet.write_table(table, path, compression=compression, write_page_checksum=True, use_dictionary=False)
    content = path.read_bytes()
    footer_bytes = int.from_bytes(content[-8:-4], "little") + 8
    pages_end = len(content) - footer_bytes
    units = sources.units(SourceConfig(files=(str(path),)))

    def read() -> list[str]:
        return [text for unit in units for _, text in sources.documents(unit)]

    errors = 0
    for changed in damaged(content[:pages_end], every=11):
        whole = changed + content[pages_end:] if len(changed) == pages_end else changed
        errors += assert_same_or_named(path, read, TEXTS, whole)
        assert_same_or_named(path, lambda: record_texts(path), TEXTS, whole)
    assert errors > 0.05 * pages_end


def test_parquet_text_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": TEXTS}), path, compression="none", use_dictionary=False)
    path.write_bytes(path.read_bytes().replace(b"document 3", b"document \xff"))
    with pytest.raises(UserError, match=r"a\.parquet: is damaged: it has text that is not valid UTF-8"):
        record_texts(path)


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "a.jsonl").write_bytes(JSON_LINES)
    return prepare_text(folder)


def prepare_text(folder: Path) -> Path:
    """Prepare the corpus of the text in a folder, as a job does at its start."""
    settings = {"files": str(folder / "a.jsonl"), "cache_dir": str(folder / "cache"), "parts": "punctuation"}
    data = DataConfig.model_validate({**settings, "prepare_processes": 1, "validation_fraction": 0.3})
    return prepare_corpus(data.sources[0], data, Bytes())


def corpus_tokens(folder: Path) -> list[str]:
    documents = []
    for split in SPLITS:
        corpus = Corpus(folder, split)
        documents += [str(corpus.document(number).tolist()) for number in range(corpus.documents)]
        documents.append(str(corpus.parts.tolist()))
    return documents


def indexed_tokens(folder: Path) -> list[str]:
    """The tokens of a corpus whose index is written again from the lengths in its shards."""
    write_index(folder, json.loads((folder / "corpus.json").read_text())["shards"], has_parts=True)
    return corpus_tokens(folder)


@pytest.mark.parametrize(
    ("pattern", "read"),
    [
        ("*.train.array_record", corpus_tokens),
        ("0*.train.npy", indexed_tokens),
        ("*.train.parts.npy", indexed_tokens),
        ("corpus.json", corpus_tokens),
        ("train.records.npy", corpus_tokens),
    ],
)
def test_token_corpora(pattern: str, read: Callable[[Path], list[str]], corpus_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(corpus_folder, folder)
    expected = corpus_tokens(folder)
    (path,) = [path for path in folder.glob(pattern) if ".parts" not in path.name or ".parts" in pattern]
    content = path.read_bytes()
    errors = 0
    for position in positions_of_data(content, 100):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        errors += assert_same_or_named(folder, lambda: read(folder), expected, bytes(flipped), path)
    assert errors > 50
    for length in range(0, len(content.rstrip(b"\0")), max(len(content) // 20, 1)):
        assert assert_same_or_named(folder, lambda: read(folder), expected, content[:length], path)


INDEX_ARRAYS = [f"{split}.{kind}.npy" for split in SPLITS for kind in ("records", "documents", "parts")]


@pytest.fixture
def reopen(corpus_folder: Path) -> Iterator[Callable[[], Path]]:
    """Opens the corpus as a job does at its start; its files are restored at the end."""
    contents = {path: path.read_bytes() for path in corpus_folder.iterdir()}
    yield partial(prepare_text, corpus_folder.parent.parent)
    for path, content in contents.items():
        path.write_bytes(content)


@pytest.mark.parametrize("name", [*INDEX_ARRAYS, "index.json"])
def test_a_damaged_index_is_written_again(name: str, reopen: Callable[[], Path]) -> None:
    folder = reopen()
    expected = corpus_tokens(folder)
    path = folder / name
    content = path.read_bytes()
    for changed in damaged(content, every=5):
        path.write_bytes(changed)
        assert reopen() == folder
        assert corpus_tokens(folder) == expected
        assert name == "index.json" or path.read_bytes() == content
    path.unlink()
    assert corpus_tokens(reopen()) == expected


def test_sentences_without_their_file_are_an_error(reopen: Callable[[], Path]) -> None:
    folder = reopen()
    (folder / "train.parts.npy").unlink()
    with pytest.raises(UserError, match=r"train\.parts\.npy: is damaged"):
        Corpus(folder, "train")
    (unit,) = folder.glob("0*.train.parts.npy")
    unit.unlink()
    with pytest.raises(UserError, match=rf"{unit}: is damaged"):
        reopen()


def test_an_index_without_checksums_is_written_again(
    reopen: Callable[[], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = reopen()
    path = folder / "index.json"
    content = path.read_text()
    path.write_text(json.dumps({"records": json.loads(content)["records"]}))
    reopen()
    assert path.read_text() == content
    assert "is written again" in capfd.readouterr().err
    assert json.loads(content)["checksums"]["train.parts.npy"] == zlib.crc32((folder / "train.parts.npy").read_bytes())


def test_a_process_that_waited_does_not_verify_again(tmp_path: Path) -> None:
    with CorpusLock(tmp_path) as lock:
        assert not lock.is_verified("index")
        waiting = CorpusLock(tmp_path)
        thread = threading.Thread(target=waiting.__enter__)
        thread.start()
        time.sleep(0.1)
        lock.mark_verified("index")
    thread.join()
    assert waiting.is_verified("index")
    assert not waiting.is_verified("rows")
    waiting.__exit__(None, None, None)
    time.sleep(0.02)
    with CorpusLock(tmp_path) as later:
        assert not later.is_verified("index")


def test_a_record_of_another_length_than_in_the_index_is_an_error(corpus_folder: Path, tmp_path: Path) -> None:
    """As where the file of another corpus was copied over it."""
    folder = tmp_path / "corpus"
    shutil.copytree(corpus_folder, folder)
    (train_file,) = folder.glob("*.train.array_record")
    (validation_file,) = folder.glob("*.validation.array_record")
    shutil.copyfile(validation_file, train_file)
    with pytest.raises(UserError, match=rf"{train_file}: is damaged: .*; delete {folder}, and the text is tokenised"):
        corpus_tokens(folder)


def test_records_of_tfds(corpus_folder: Path, tmp_path: Path) -> None:
    (original,) = corpus_folder.glob("*.train.array_record")
    path = tmp_path / "a.array_record"
    content = write(path, original.read_bytes()).read_bytes()
    count = len(np.load(original.with_suffix(".npy")))

    def read() -> list[str]:
        records = TfdsRecords(f"{path} (train)", ArrayRecordDataSource([f"{path}[0:{count}]"]))
        return [str(records[number]) for number in range(len(records))]

    expected = read()
    errors = 0
    for position in positions_of_data(content, 100):
        flipped = bytearray(content)
        flipped[position] ^= 2
        errors += assert_same_or_named(path, read, expected, bytes(flipped))
    assert errors > 50
