"""The token corpus: documents as one stream of token ids, with random access, on a disk or in a bucket.

`prepare.prepare_corpus` writes a corpus once; `corpus_files` says of which files it consists.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorstore
from jaxtyping import Int32, Int64

from t5x_lite.data.corpus_files import CorpusFiles, Split
from t5x_lite.data.corpus_summary import read_summary
from t5x_lite.data.sorted_arrays import SortedArray, open_sorted


class Corpus:
    """One split of a finished corpus, as one long stream of tokens with random access.

    Opening a corpus reads its summary and the sparse indices. A window of tokens is then one request for its tokens and
    one for the starts of its documents; further ones where it crosses the border of a chunk, and where the places of
    the chunks of a shard have not been read lately. A corpus is thread-safe. A copy in another process opens its files
    again.

    Attributes:
        tokens: number of tokens.
        documents: number of documents.
        text_bytes: size of the text in UTF-8, in bytes.
        offsets: where each of the documents starts in the stream, and the end of the stream.
        hash: of the tokens and the borders of documents and parts.
        parts: where each sentence or field starts (`data.parts`), and the end of the stream; `offsets` itself if
            documents have no parts.
    """

    offsets: SortedArray
    parts: SortedArray

    def __init__(self, folder: str | Path, split: Split) -> None:
        files = CorpusFiles(str(folder))
        summary = read_summary(files)
        counts = summary.splits[split]
        self.folder = files.folder
        self.split = split
        self.tokens = counts.tokens
        self.documents = counts.documents
        self.text_bytes = counts.text_bytes
        self.hash = counts.hash
        self._unit_stops = np.cumsum(counts.unit_tokens).tolist()
        self._spec = files.tokens(split, summary.token_type)
        self._array: tensorstore.TensorStore | None = None
        self.offsets = open_sorted(files.starts(split, "documents"), counts.documents + 1, files.remedy)
        self.parts = self.offsets
        if counts.parts is not None:
            self.parts = open_sorted(files.starts(split, "parts"), counts.parts + 1, files.remedy)
        if {self.offsets[-1], self.parts[-1]} != {self.tokens}:
            raise files.damaged(files.summary, f"it counts {self.tokens} {split} tokens, but its documents have others")

    def __reduce__(self) -> tuple[type["Corpus"], tuple[str, Split]]:
        return Corpus, (self.folder, self.split)

    @property
    def has_parts(self) -> bool:
        """True if the documents are cut into sentences or fields."""
        return self.parts is not self.offsets

    def read_spans(self, spans: Sequence[Sequence[int]]) -> Int32[np.ndarray, "tokens"]:
        """Return the tokens of spans of the stream, one after the other. All are requested at once.

        Raises:
            UserError: a file is damaged, or the store cannot be read.
        """
        with self._spec.reading():
            if self._array is None:
                self._array = self._spec.open()
            pending = []
            for start, stop in spans:
                for unit, piece in self._pieces(start, stop):
                    pending.append(self._array[unit, piece].read())
            if not pending:
                return np.zeros(0, np.int32)
            return np.concatenate([read.result() for read in pending]).astype(np.int32)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, slice]]:
        """Yield the units that a span is in, and the part of each."""
        unit = bisect_right(self._unit_stops, start)
        while start < stop:
            unit_start = self._unit_stops[unit - 1] if unit else 0
            piece_stop = min(stop, self._unit_stops[unit])
            if piece_stop > start:
                yield unit, slice(start - unit_start, piece_stop - unit_start)
            start = max(start, piece_stop)
            unit += 1

    def part_lengths(self, start: int, stop: int) -> Int64[np.ndarray, "documents parts"]:
        """Return the tokens in each part of the documents `[start, stop)`; all documents have equally many parts."""
        part_count = (len(self.parts) - 1) // self.documents
        parts = self.parts[start * part_count : stop * part_count + 1]
        return np.diff(parts).reshape(-1, part_count)

    def first_parts(self, start: int, stop: int) -> Int64[np.ndarray, "documents"]:
        """Return the index of the first part of each of the documents `[start, stop)`.

        Where fields are empty, several parts start at one place. All documents have equally many fields, by which the
        first one is found. Sentences are not empty.
        """
        document_starts = self.offsets[start:stop]
        part_count, rest = divmod(len(self.parts) - 1, self.documents)
        if not rest and np.array_equal(
            self.parts[start * part_count : stop * part_count][::part_count], document_starts
        ):
            return np.arange(start, stop) * part_count
        return self.parts.search(document_starts)

    def document(self, number: int) -> Int32[np.ndarray, "tokens"]:
        """Return the tokens of one document, with its EOS."""
        start, stop = self.offsets[number : number + 2].tolist()
        return self.read_spans([(start, stop)])
