"""The token corpus: documents as token ids in ArrayRecord shards, with an index for random access.

`prepare.prepare_corpus` writes a corpus once. Its folder holds, for each unit of text and each split:

* `UNIT.SPLIT.array_record`: token ids; a record has tokens of one document;
* `UNIT.SPLIT.npy`: int64 `[records, 2]`, the tokens of each record, and 1 where a document begins;
* `UNIT.SPLIT.parts.npy`: int64 `[parts]`, the tokens of each sentence or field (only with `data.parts`);
* `UNIT.json`: counts of each split, written last, so that a unit with this file is complete;

and `corpus.json`: the units and the total counts. It is written last of all; a folder without it is never read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from jaxtyping import Int32, Int64, Integer
from pydantic import BaseModel, Field, NonNegativeInt, ValidationError

from t5x_lite.errors import UserError
from t5x_lite.files import read_json_object

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
CORPUS_FILE = "corpus.json"


class SplitCounts(BaseModel, strict=True, extra="forbid"):
    """Counts of one split. `replaced` counts the documents with bytes that were not UTF-8."""

    documents: NonNegativeInt
    tokens: NonNegativeInt
    text_bytes: NonNegativeInt
    replaced: NonNegativeInt


class CorpusSummary(BaseModel, strict=True, extra="forbid"):
    """Content of `corpus.json`: the names of the units, and the counts of each split."""

    shards: list[Annotated[str, Field(pattern=r"^\d+$")]] = Field(min_length=1)
    splits: dict[Split, SplitCounts]


@dataclass(frozen=True)
class ShardFiles:
    """The files of one shard: the documents of one unit of text that are in one split."""

    folder: Path
    unit: str
    split: Split

    @property
    def records(self) -> Path:
        """Token ids, in an ArrayRecord file."""
        return self.folder / f"{self.unit}.{self.split}.array_record"

    @property
    def index(self) -> Path:
        """Tokens of each record, and where documents begin."""
        return self.folder / f"{self.unit}.{self.split}.npy"

    @property
    def parts(self) -> Path:
        """Tokens of each part of the documents. The file exists only in a corpus with `data.parts`."""
        return self.folder / f"{self.unit}.{self.split}.parts.npy"


class Corpus:
    """One split of a finished corpus, as one long stream of tokens with random access.

    A corpus is thread-safe. A copy in another process opens its files again, each when it is first read.

    Attributes:
        tokens: number of tokens.
        documents: number of documents.
        text_bytes: size of the text in UTF-8, in bytes.
        offsets: int64 `[documents + 1]`, where each document starts in the stream, and the end of the stream.
        parts: int64 `[parts + 1]`, where each sentence or field starts (`data.parts`), and the end of the stream;
            `offsets` itself if documents have no parts.
    """

    offsets: Int64[np.ndarray, "documents_and_end"]
    parts: Int64[np.ndarray, "parts_and_end"]

    def __init__(self, folder: Path, split: Split) -> None:
        summary = _read_summary(folder)
        counts = summary.splits[split]
        self.folder = folder
        self.split = split
        self.tokens = counts.tokens
        self.documents = counts.documents
        self.text_bytes = counts.text_bytes
        record_files: list[str] = []
        indices: list[np.ndarray] = []
        part_lengths: list[np.ndarray] = []
        for unit in summary.shards:
            shard = ShardFiles(folder, unit, split)
            index = _load_integers(folder, shard.index, columns=2)
            indices.append(index)
            # Given the number of records after the name, the library opens a file only when it is read.
            record_files.append(f"{shard.records}[0:{len(index)}]")
            if shard.parts.is_file():
                part_lengths.append(_load_integers(folder, shard.parts, columns=1)[:, 0])
        self._records = ArrayRecordDataSource(record_files)
        self._shard_ends = np.cumsum([len(index) for index in indices])
        self._shards = summary.shards
        record_tokens, begins_document = np.concatenate(indices).T
        self._record_offsets = _offsets(record_tokens)
        document_starts = self._record_offsets[np.flatnonzero(begins_document)]
        self.offsets = np.append(document_starts, self._record_offsets[-1])
        self.parts = self.offsets
        if part_lengths:
            self.parts = _offsets(np.concatenate(part_lengths))
        self._check_counts(part_lengths)

    def _check_counts(self, part_lengths: list[Int64[np.ndarray, "_"]]) -> None:
        """Check that the index has as many tokens and documents as the summary says.

        Raises:
            UserError: it has not.
        """
        tokens = int(self._record_offsets[-1])
        part_tokens = int(self.parts[-1]) if part_lengths else tokens
        documents = len(self.offsets) - 1
        if (tokens, part_tokens, documents) != (self.tokens, self.tokens, self.documents):
            raise _damaged(
                self.folder,
                self.folder / CORPUS_FILE,
                f"it counts {self.tokens} tokens of {self.documents} {self.split} documents, but the files beside it "
                f"have {tokens} of {documents}, and {part_tokens} in parts",
            )

    def __reduce__(self) -> tuple[type["Corpus"], tuple[Path, Split]]:
        return Corpus, (self.folder, self.split)

    @property
    def has_parts(self) -> bool:
        """True if the documents are cut into sentences or fields."""
        return self.parts is not self.offsets

    def read(self, start: int, stop: int) -> tuple[Int32[np.ndarray, "tokens"], Int64[np.ndarray, "tokens"]]:
        """Return the tokens `[start, stop)` of the stream, and the number of each token's document."""
        first, last = np.searchsorted(self._record_offsets, [start, stop - 1], side="right") - 1
        records = [self._read_record(number) for number in range(first, last + 1)]
        tokens = np.concatenate(records)
        skipped = start - int(self._record_offsets[first])
        return tokens[skipped : skipped + stop - start], interval_indices(self.offsets, start, stop)

    def _read_record(self, number: int) -> Int32[np.ndarray, "tokens"]:
        """Return the tokens of a record. The library verifies checksums, and the index says how many tokens there are.

        Raises:
            UserError: the file is damaged.
        """
        expected = self._record_offsets[number + 1] - self._record_offsets[number]
        reason = "a record has another length than in the index"
        try:
            tokens = decode_record(self._records[number])
        except (IndexError, OSError, RuntimeError, ValueError, TypeError) as error:  # ArrayRecord has none of its own
            reason = " ".join(str(error).split())[:200]
        else:
            if len(tokens) == expected:
                return tokens
        unit = self._shards[int(np.searchsorted(self._shard_ends, number, side="right"))]
        raise _damaged(self.folder, ShardFiles(self.folder, unit, self.split).records, reason)

    def document(self, number: int) -> Int32[np.ndarray, "tokens"]:
        """Return the tokens of one document, with its EOS."""
        tokens, _ = self.read(int(self.offsets[number]), int(self.offsets[number + 1]))
        return tokens


def encode_record(tokens: Int32[np.ndarray, "tokens"], token_bytes: int) -> bytes:
    """Return a record: a header of four bytes, of which the first is the size of a token, and the token ids.

    Args:
        tokens: token ids.
        token_bytes: bytes of a token, 2 or 4.
    """
    return bytes([token_bytes, 0, 0, 0]) + tokens.astype(f"u{token_bytes}").tobytes()


def decode_record(record: bytes) -> Int32[np.ndarray, "tokens"]:
    """Return the token ids of a record."""
    token_bytes = record[0]
    return np.frombuffer(record, f"u{token_bytes}", offset=4).astype(np.int32)


def _read_summary(folder: Path) -> CorpusSummary:
    """Return the content of `corpus.json`.

    Raises:
        UserError: it is damaged.
    """
    path = folder / CORPUS_FILE
    try:
        return CorpusSummary.model_validate(read_json_object(path))
    except (UserError, ValidationError):
        raise _damaged(folder, path, "it is not the summary of a corpus") from None


def _load_integers(folder: Path, path: Path, columns: int) -> Int64[np.ndarray, "rows columns"]:
    """Load the lengths in a file as rows of `columns` numbers.

    Raises:
        UserError: the file is damaged.
    """
    try:
        values = np.load(path)
    except Exception as error:  # of NumPy, of the file system, and of Python's parser, which reads the header
        raise _damaged(folder, path, " ".join(str(error).split())[:200]) from None
    if values.dtype != np.int64 or values.size % columns or values.min(initial=0) < 0:
        raise _damaged(folder, path, f"it has {values.dtype} values of shape {values.shape}, expected lengths")
    return values.reshape(-1, columns)


def _damaged(folder: Path, path: Path, reason: str) -> UserError:
    return UserError(f"{path}: is damaged: {reason}; delete {folder}, and the text is tokenised again")


def interval_indices(borders: Integer[np.ndarray, "borders"], start: int, stop: int) -> Int64[np.ndarray, "positions"]:
    """Return the index of the interval that each position in `[start, stop)` is in.

    Interval n is `[borders[n], borders[n + 1])`; the borders are sorted.
    """
    first, last = np.searchsorted(borders, (start, stop - 1), side="right") - 1
    if first == last:
        return np.full(stop - start, first)
    positions = np.clip(borders[first : last + 2], start, stop)
    return np.repeat(np.arange(first, last + 1), np.diff(positions))


def _offsets(lengths: Integer[np.ndarray, "n"]) -> Int64[np.ndarray, "n_and_end"]:
    """Return the start of each of several consecutive intervals of these lengths, and the end of the last."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
