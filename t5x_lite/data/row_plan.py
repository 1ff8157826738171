"""Row plans: which tokens of a corpus each row holds (`data.packing`)."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeAlias

import numpy as np
from jaxtyping import Int64

from t5x_lite.data.chunked_arrays import Readable
from t5x_lite.data.corpus import Corpus
from t5x_lite.objectives.objective import TokenRow

SEARCHES_AT_ONCE = 32
"""Rows that are searched for at the same time: in a bucket each takes several requests."""


class StreamWindows:
    """Rows are consecutive windows of the token stream, which cross the borders of documents.

    A phase shifts all windows of an epoch, so that epochs do not cut documents at the same positions.

    Args:
        corpus: the token stream.
        length: tokens of a window.
        stride: tokens from the start of a window to the start of the next.
        covers_all: also have a short last window, so that every token is in a row; rows cannot be shifted then.

    Attributes:
        rows: number of windows. Without `covers_all` every window is full, whatever the phase is below the stride.
    """

    def __init__(self, corpus: Corpus, length: int, stride: int, *, covers_all: bool = False) -> None:
        self.corpus = corpus
        self.length = length
        self.stride = stride
        overlap = length - stride
        if covers_all:
            row_count = (corpus.tokens - overlap + stride - 1) // stride
        else:
            row_count = (corpus.tokens - length + 1) // stride
        self.rows = max(row_count, 0)

    def read(self, row: int, phase: int = 0) -> TokenRow:
        """Return a row, shifted by `phase` tokens."""
        start = row * self.stride + phase
        stop = min(start + self.length, self.corpus.tokens)
        return _read_spans(self.corpus, [(start, stop)], self.length, within_documents=False)

    def continues(self, row: int, phase: int = 0) -> bool:
        """Return whether a row, not the first, begins in the document of the token before it."""
        start = row * self.stride + phase
        before, first = self.corpus.offsets.intervals(start - 1, start + 1).tolist()
        return bool(before == first)

    def first_token(self, row: int) -> int:
        """Return the position in the stream at which a row begins, without a phase."""
        return row * self.stride

    def divide(self, borders: Int64[np.ndarray, "borders"]) -> Int64[np.ndarray, "blocks 2"]:
        """Return the first row, and the end of the rows, whose strides lie between two neighbouring borders."""
        first = -(-borders[:-1] // self.stride)
        end = np.minimum(borders[1:] // self.stride, self.rows)
        return np.stack([first, np.maximum(end, first)], axis=1)


class DocumentRows:
    """Rows are documents, one each.

    Args:
        corpus: the token stream.
        length: tokens of a row, to which longer documents are cut.
        keeps_ends: do not cut documents; for objectives on pairs, which shorten the texts of a pair themselves.

    Attributes:
        rows: number of documents.
    """

    def __init__(self, corpus: Corpus, length: int, *, keeps_ends: bool = False) -> None:
        self.corpus = corpus
        self.length = length
        self.keeps_ends = keeps_ends
        self.rows = corpus.documents

    def read(self, row: int, phase: int = 0) -> TokenRow:
        """Return a row. Documents have no phase."""
        start, stop = self.corpus.offsets[row : row + 2].tolist()
        if not self.keeps_ends:
            stop = min(stop, start + self.length)
        return _read_spans(self.corpus, [(start, stop)], max(self.length, stop - start), within_documents=True)

    def document_number(self, row: int) -> int:
        """Return the number of the document in a row."""
        return row

    def first_token(self, row: int) -> int:
        """Return the position in the stream at which a row begins."""
        return int(self.corpus.offsets[row])

    def divide(self, borders: Int64[np.ndarray, "borders"]) -> Int64[np.ndarray, "blocks 2"]:
        """Return the first row, and the end of the rows, that lie between two neighbouring borders."""
        first = self.corpus.offsets.search(borders[:-1])
        end = self.corpus.offsets.search(borders[1:], side="right") - 1
        return np.stack([first, np.maximum(end, first)], axis=1)


class PackedRows:
    """Rows are spans of the token stream, one or several per row.

    Args:
        corpus: the token stream.
        spans: start and stop of each span, in the order in which rows hold them.
        row_starts: the first span of each row, and the number of spans.
        length: tokens of a row.
        within_documents: no span crosses the border of a document.

    Attributes:
        rows: number of rows.
    """

    def __init__(
        self, corpus: Corpus, spans: Readable, row_starts: Readable, length: int, *, within_documents: bool
    ) -> None:
        self.within_documents = within_documents
        self.corpus = corpus
        self.spans = spans
        self.row_starts = row_starts
        self.length = length
        self.rows = len(row_starts) - 1

    def read(self, row: int, phase: int = 0) -> TokenRow:
        """Return a row. Rows of spans have no phase."""
        first, stop = self.row_starts.read(row, row + 2).tolist()
        spans = self.spans.read(first, stop)
        tokens = int((spans[:, 1] - spans[:, 0]).sum())
        length = max(self.length, tokens)
        return _read_spans(self.corpus, spans.tolist(), length, within_documents=self.within_documents)

    def document_number(self, row: int) -> int:
        """Return the number of the document in which a row begins."""
        return int(self.corpus.offsets.search([self.first_token(row)], side="right")[0]) - 1

    def first_token(self, row: int) -> int:
        """Return the position in the stream at which a row begins."""
        (first,) = self.row_starts.read(row, row + 1).tolist()
        return int(self.spans.read(first, first + 1)[0, 0])

    def divide(self, borders: Int64[np.ndarray, "borders"]) -> Int64[np.ndarray, "blocks 2"]:
        """Return the first row, and the end of the rows, that lie between two neighbouring borders.

        The rows must be in the order of the text, as rows of sentences are.
        """
        rows = range(self.rows)
        with ThreadPoolExecutor(SEARCHES_AT_ONCE) as pool:
            first = list(pool.map(partial(bisect_left, rows, key=self.first_token), borders[:-1].tolist()))
            end = list(pool.map(partial(bisect_right, rows, key=self._end_of_row), borders[1:].tolist()))
        return np.stack([first, np.maximum(end, first)], axis=1)

    def _end_of_row(self, row: int) -> int:
        (end,) = self.row_starts.read(row + 1, row + 2).tolist()
        return int(self.spans.read(end - 1, end)[0, 1])


RowPlan: TypeAlias = StreamWindows | DocumentRows | PackedRows


def _read_spans(corpus: Corpus, spans: Sequence[Sequence[int]], length: int, *, within_documents: bool) -> TokenRow:
    """Read spans of the stream one after the other, padded to `length`, with their segments and parts numbered.

    Args:
        corpus: the token stream.
        spans: start and stop of each.
        length: tokens of the row.
        within_documents: no span crosses the border of a document, so that borders need not be looked up.
    """
    tokens = np.zeros(length, np.int32)
    segments = np.zeros(length, np.int32)
    parts = np.zeros(length, np.int32)
    stream = corpus.read_spans(spans)
    tokens[: len(stream)] = stream
    position = 0
    segment = 1
    for start, stop in spans:
        if stop <= start:
            continue
        place = slice(position, position + stop - start)
        position = place.stop
        segments[place] = segment
        if corpus.has_parts or not within_documents:
            documents = corpus.offsets.intervals(start, stop)
            segments[place] += documents - documents[0]
        if corpus.has_parts:
            first_parts = corpus.first_parts(int(documents[0]), int(documents[-1]) + 1)
            parts[place] = corpus.parts.intervals(start, stop) - first_parts[documents - documents[0]]
        segment = int(segments[position - 1]) + 1
    return TokenRow(tokens, segments, parts)
