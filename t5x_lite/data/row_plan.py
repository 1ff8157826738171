"""Row plans: which tokens of a corpus each row holds (`data.packing`)."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Int64

from t5x_lite.data.corpus import Corpus, interval_indices
from t5x_lite.objectives.objective import TokenRow


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
        return _read_spans(self.corpus, [(start, stop)], self.length)

    def first_token(self, row: int) -> int:
        """Return the position in the stream at which a row begins, without a phase."""
        return row * self.stride

    def rows_between(self, start: int, stop: int) -> tuple[int, int]:
        """Return the first row, and the end of the rows, whose strides lie between two positions in the stream."""
        first = -(-start // self.stride)
        return first, max(min(stop // self.stride, self.rows), first)


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
        return _read_spans(self.corpus, [(start, stop)], max(self.length, stop - start))

    def document_number(self, row: int) -> int:
        """Return the number of the document in a row."""
        return row

    def first_token(self, row: int) -> int:
        """Return the position in the stream at which a row begins."""
        return int(self.corpus.offsets[row])

    def rows_between(self, start: int, stop: int) -> tuple[int, int]:
        """Return the first row, and the end of the rows, that lie between two positions in the stream."""
        first = int(np.searchsorted(self.corpus.offsets, start))
        end = int(np.searchsorted(self.corpus.offsets, stop, side="right")) - 1
        return first, max(end, first)


class PackedRows:
    """Rows are spans of the token stream, one or several per row.

    Args:
        corpus: the token stream.
        spans: start and stop of each span, in the order in which rows hold them.
        row_starts: the first span of each row, and the number of spans.
        length: tokens of a row.

    Attributes:
        rows: number of rows.
    """

    def __init__(
        self,
        corpus: Corpus,
        spans: Int64[np.ndarray, "spans 2"],
        row_starts: Int64[np.ndarray, "rows_and_end"],
        length: int,
    ) -> None:
        self.corpus = corpus
        self.spans = spans
        self.row_starts = row_starts
        self.length = length
        self.rows = len(row_starts) - 1

    def read(self, row: int, phase: int = 0) -> TokenRow:
        """Return a row. Rows of spans have no phase."""
        spans = self.spans[self.row_starts[row] : self.row_starts[row + 1]]
        tokens = int((spans[:, 1] - spans[:, 0]).sum())
        return _read_spans(self.corpus, spans.tolist(), max(self.length, tokens))

    def document_number(self, row: int) -> int:
        """Return the number of the document in which a row begins."""
        return int(np.searchsorted(self.corpus.offsets, self.first_token(row), side="right")) - 1

    def first_token(self, row: int) -> int:
        """Return the position in the stream at which a row begins."""
        return int(self.spans[self.row_starts[row], 0])

    def rows_between(self, start: int, stop: int) -> tuple[int, int]:
        """Return the first row, and the end of the rows, that lie between two positions in the stream.

        The rows must be in the order of the text, as rows of sentences are.
        """
        first = bisect_left(range(self.rows), start, key=self.first_token)
        end = bisect_right(range(self.rows), stop, key=self._end_of_row)
        return first, max(end, first)

    def _end_of_row(self, row: int) -> int:
        return int(self.spans[self.row_starts[row + 1] - 1, 1])


RowPlan: TypeAlias = StreamWindows | DocumentRows | PackedRows


def _read_spans(corpus: Corpus, spans: Sequence[Sequence[int]], length: int) -> TokenRow:
    """Read spans of the stream one after the other, padded to `length`, with their segments and parts numbered."""
    tokens = np.zeros(length, np.int32)
    segments = np.zeros(length, np.int32)
    parts = np.zeros(length, np.int32)
    position = 0
    segment = 1
    for start, stop in spans:
        if stop <= start:
            continue
        place = slice(position, position + stop - start)
        tokens[place], documents = corpus.read(start, stop)
        segments[place] = segment + documents - documents[0]
        if corpus.has_parts:
            first_parts = np.searchsorted(corpus.parts, corpus.offsets[documents])
            parts[place] = interval_indices(corpus.parts, start, stop) - first_parts
        position = place.stop
        segment = int(segments[position - 1]) + 1
    return TokenRow(tokens, segments, parts)
