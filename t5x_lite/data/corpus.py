"""The token corpus: documents as token ids in ArrayRecord shards, with an index for random access.

`prepare.prepare_corpus` writes a corpus once. Its folder holds, for each unit of text and each split:

* `UNIT.SPLIT.array_record`: token ids; a record has tokens of one document;
* `UNIT.SPLIT.npy`: int64 `[records, 2]`, the tokens of each record, and 1 where a document begins;
* `UNIT.SPLIT.parts.npy`: int64 `[parts]`, the tokens of each sentence or field (only with `data.parts`);
* `UNIT.json`: counts of each split, written last, so that a unit with this file is complete;

`corpus.json`: the units and the total counts, written when all units are complete; and the index (see `corpus_index`),
written last of all. A folder without it is never read.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import Int32, Int64, Integer
from pydantic import BaseModel, Field, NonNegativeInt, ValidationError

from t5x_lite.data.corpus_index import CorpusIndex
from t5x_lite.data.shard_reader import ShardReader
from t5x_lite.data.shards import ShardFiles, Split, damaged, decode_record
from t5x_lite.errors import UserError
from t5x_lite.files import read_json_object

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


class Corpus:
    """One split of a finished corpus, as one long stream of tokens with random access.

    A corpus is thread-safe. A copy in another process opens its files again, each when it is first read. The arrays are
    mapped into memory: a process holds only the pages that it reads, and shares them with the others.

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
        index = CorpusIndex(folder, split)
        self._record_offsets = index.records
        self.offsets = index.documents
        self.parts = self.offsets
        if index.parts is not None:
            self.parts = index.parts
        shards = [ShardFiles(folder, unit, split) for unit in summary.shards]
        if len(shards) != len(index.shard_records):
            reason = f"it names {len(shards)} shards, but the index has {len(index.shard_records)}"
            raise damaged(folder, folder / CORPUS_FILE, reason)
        self._records = ShardReader(shards, index.shard_records)
        self._check_counts()

    def _check_counts(self) -> None:
        """Check that the index has as many tokens and documents as the summary says.

        Raises:
            UserError: it has not.
        """
        tokens = int(self._record_offsets[-1])
        part_tokens = int(self.parts[-1])
        documents = len(self.offsets) - 1
        if (tokens, part_tokens, documents) != (self.tokens, self.tokens, self.documents):
            raise damaged(
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
        tokens = np.concatenate(self._read_records(int(first), int(last) + 1))
        skipped = start - int(self._record_offsets[first])
        return tokens[skipped : skipped + stop - start], interval_indices(self.offsets, start, stop)

    def _read_records(self, start: int, stop: int) -> list[Int32[np.ndarray, "_"]]:
        """Return the tokens of records. The library verifies checksums, and the index says how many tokens there are.

        Raises:
            UserError: a file is damaged.
        """
        expected_counts = np.diff(self._record_offsets[start : stop + 1])
        tokens_of_records = []
        for number, record in enumerate(self._records.read(start, stop), start):
            try:
                tokens = decode_record(record)
            except (IndexError, TypeError, ValueError) as error:
                raise self._records.damaged(number, str(error)) from None
            if len(tokens) != expected_counts[number - start]:
                raise self._records.damaged(number, "a record has another length than in the index")
            tokens_of_records.append(tokens)
        return tokens_of_records

    def part_lengths(self, start: int, stop: int) -> Int64[np.ndarray, "documents parts"]:
        """Return the tokens in each part of the documents `[start, stop)`; all documents have equally many parts."""
        part_count = (len(self.parts) - 1) // self.documents
        parts = self.parts[start * part_count : stop * part_count + 1]
        return np.diff(parts).reshape(-1, part_count)

    def document(self, number: int) -> Int32[np.ndarray, "tokens"]:
        """Return the tokens of one document, with its EOS."""
        tokens, _ = self.read(int(self.offsets[number]), int(self.offsets[number + 1]))
        return tokens


def _read_summary(folder: Path) -> CorpusSummary:
    """Return the content of `corpus.json`.

    Raises:
        UserError: it is damaged.
    """
    path = folder / CORPUS_FILE
    try:
        return CorpusSummary.model_validate(read_json_object(path))
    except (UserError, ValidationError):
        raise damaged(folder, path, "it is not the summary of a corpus") from None


def interval_indices(borders: Integer[np.ndarray, "borders"], start: int, stop: int) -> Int64[np.ndarray, "positions"]:
    """Return the index of the interval that each position in `[start, stop)` is in.

    Interval n is `[borders[n], borders[n + 1])`; the borders are sorted.
    """
    first, last = np.searchsorted(borders, (start, stop - 1), side="right") - 1
    if first == last:
        return np.full(stop - start, first)
    positions = np.clip(borders[first : last + 2], start, stop)
    return np.repeat(np.arange(first, last + 1), np.diff(positions))
