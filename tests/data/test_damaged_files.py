"""Flipped and missing bytes of data files: an error that names the file, and never other records."""

import gzip
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from backports import zstd
from pyarrow import parquet

from t5x_lite.data import chunked_arrays, sources, unit_readers
from t5x_lite.data.byte_tokenizer import Bytes
from t5x_lite.data.config import DataConfig, SourceConfig
from t5x_lite.data.corpus import Corpus
from t5x_lite.data.corpus_files import SPLITS, CorpusFiles
from t5x_lite.data.corpus_index import complete_corpus
from t5x_lite.data.files import TfdsRecords
from t5x_lite.data.prepare import prepare_corpus
from t5x_lite.data.record_files import read_record_file
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
            path, lambda: [text for unit in units for _, text in unit_readers.documents(unit)], TEXTS, changed
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
        return [text for unit in units for _, text in unit_readers.documents(unit)]

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
    return Path(prepare_corpus(data.sources[0], data, Bytes()))


def corpus_tokens(folder: Path) -> list[str]:
    chunked_arrays.reading_context.cache_clear()
    documents = []
    for split in SPLITS:
        corpus = Corpus(folder, split)
        documents += [str(corpus.document(number).tolist()) for number in range(corpus.documents)]
        documents.append(str(corpus.parts[:].tolist()))
        documents.append(str(corpus.offsets.search(corpus.offsets[:], side="right").tolist()))
    return documents


def completed_tokens(folder: Path) -> list[str]:
    """The tokens of a corpus that is completed again from the lengths of its units."""
    complete_corpus(CorpusFiles(str(folder)), ["000000"], "uint16", has_parts=True)
    return corpus_tokens(folder)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        *(
            (f"{split}.{array}/{file}", corpus_tokens)
            for split, array in itertools.product(("train",), ("tokens", "documents", "documents.sparse", "parts"))
            for file in ("zarr.json", "c/0/0" if array == "tokens" else "c/0")
        ),
        ("000000.npz", completed_tokens),
        ("corpus.json", corpus_tokens),
    ],
)
def test_token_corpora(name: str, read: Callable[[Path], list[str]], corpus_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(corpus_folder, folder)
    expected = corpus_tokens(folder)
    path = folder / name
    content = path.read_bytes()
    errors = 0
    positions = positions_of_data(content, 60)
    for position in positions:
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        errors += assert_same_or_named(folder, lambda: read(folder), expected, bytes(flipped), path)
    # Bytes of chunks that are not there, and the names of shards, are not read.
    assert errors > len(positions) / 4
    for length in range(0, len(content.rstrip(b"\0")) // 2, max(len(content) // 20, 1)):
        assert assert_same_or_named(folder, lambda: read(folder), expected, content[:length], path)
    path.unlink()
    with pytest.raises(UserError, match=rf"{folder}.*; delete {folder}, and the text is tokenised again"):
        read(folder)


def test_the_tokens_of_another_corpus_are_an_error(corpus_folder: Path, tmp_path: Path) -> None:
    """As where the file of another corpus was copied over it: the validation text is shorter."""
    folder = tmp_path / "corpus"
    shutil.copytree(corpus_folder, folder)
    summary = json.loads((folder / "corpus.json").read_text())
    summary["splits"]["validation"]["tokens"] += 1
    (folder / "corpus.json").write_text(json.dumps(summary))
    with pytest.raises(UserError, match=r"corpus\.json: is damaged: it is not the summary of a corpus"):
        corpus_tokens(folder)


def test_records_of_tfds(tmp_path: Path) -> None:
    path = tmp_path / "a.array_record"
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for text in TEXTS:
        writer.write(text.encode())
    writer.close()
    content = path.read_bytes()
    count = len(TEXTS)

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
