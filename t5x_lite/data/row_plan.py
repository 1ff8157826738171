"""Row plans: which tokens of a corpus each row holds (`data.packing`)."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Int64, Integer

from t5x_lite.data.config import DataConfig
from t5x_lite.data.corpus import Corpus, interval_indices
from t5x_lite.objectives.objective import ExampleContext, Objective, TokenRow

Spans: TypeAlias = Int64[np.ndarray, "spans 2"]
"""Start and stop of spans of the token stream."""


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


class PackedRows:
    """Rows are spans of the token stream, one or several per row.

    Args:
        corpus: the token stream.
        spans: spans in the order in which rows hold them.
        length: tokens of a row.
        row_starts: `[rows + 1]`, the first span of each row, and the number of spans; by default each span is a row.

    Attributes:
        rows: number of rows.
    """

    def __init__(
        self, corpus: Corpus, spans: Spans, length: int, row_starts: Int64[np.ndarray, "rows_and_end"] | None = None
    ) -> None:
        self.corpus = corpus
        self.spans = spans
        self.length = length
        if row_starts is None:
            row_starts = np.arange(len(spans) + 1)
        self.row_starts = row_starts
        self.rows = len(row_starts) - 1

    def read(self, row: int, phase: int = 0) -> TokenRow:
        """Return a row. Rows of spans have no phase."""
        spans = self.spans[self.row_starts[row] : self.row_starts[row + 1]]
        tokens = int((spans[:, 1] - spans[:, 0]).sum())
        return _read_spans(self.corpus, spans.tolist(), max(self.length, tokens))

    def document_number(self, row: int) -> int:
        """Return the number of the document in which a row begins."""
        start = self.spans[self.row_starts[row], 0]
        return int(np.searchsorted(self.corpus.offsets, start, side="right")) - 1


RowPlan: TypeAlias = StreamWindows | PackedRows


def build_row_plan(
    corpus: Corpus, data: DataConfig, objective: Objective, context: ExampleContext, seed: int | None
) -> RowPlan:
    """Return the rows of a corpus.

    Args:
        corpus: the token stream.
        data: says what rows are packed from.
        objective: says how many tokens a row has room for.
        context: the context of the objective's examples.
        seed: seed of the order in which documents are packed; None for validation, which keeps their order and reads
            every token.
    """
    length = objective.row_length(context)
    match data.packing:
        case "stream":
            return StreamWindows(corpus, length, objective.stride(context), covers_all=seed is None)
        case "documents":
            return pack_documents(corpus, objective, context, seed)
        case "sentences":
            return pack_sentences(corpus, length, within_documents=objective.rows == "sentences")
        case "none":
            spans = _document_spans(corpus)
            if objective.rows != "pairs":  # an objective on pairs shortens the texts of a pair itself
                spans[:, 1] = np.minimum(spans[:, 1], spans[:, 0] + length)
            return PackedRows(corpus, spans, length)


def pack_documents(corpus: Corpus, objective: Objective, context: ExampleContext, seed: int | None) -> PackedRows:
    """Pack whole documents into rows, in a random order that depends on the seed, or in their order without a seed.

    A document that is longer than a row is cut into rows first, unless it is a pair of texts. The objective says how
    much room a document takes.
    """
    length = objective.row_length(context)
    if objective.rows == "pairs":
        spans = _document_spans(corpus)
        part_lengths = np.diff(corpus.parts).reshape(corpus.documents, -1)
    else:
        spans = _cut_documents(corpus.offsets, length)
        part_lengths = np.diff(spans, axis=1)
    if seed is not None:
        order = np.random.default_rng(seed).permutation(len(spans))
        spans = spans[order]
        part_lengths = part_lengths[order]
    sizes = np.zeros((0, 1), np.int64)
    if len(part_lengths):
        sizes = objective.sizes(part_lengths, context)
    return PackedRows(corpus, spans, length, next_fit(sizes, objective.capacity(context)))


def pack_sentences(corpus: Corpus, length: int, *, within_documents: bool) -> PackedRows:
    """Pack whole sentences into rows in the order of the text. A sentence that is longer than a row is cut short.

    Args:
        corpus: a corpus with parts.
        length: tokens of a row.
        within_documents: whether a row ends where its document ends.
    """
    borders = None
    if within_documents:
        borders = np.searchsorted(corpus.parts, corpus.offsets)
    sentence_lengths = np.diff(corpus.parts)
    starts = corpus.parts[next_fit(sentence_lengths[:, None], [length], borders)]
    stops = np.minimum(starts[1:], starts[:-1] + length)
    return PackedRows(corpus, np.stack([starts[:-1], stops], axis=1), length)


def next_fit(
    sizes: Integer[np.ndarray, "items kinds"],
    capacity: Sequence[int],
    borders: Integer[np.ndarray, "borders"] | None = None,
) -> Int64[np.ndarray, "rows_and_end"]:
    """Pack items into rows in their order by next-fit bin packing: a row is full when the next item does not fit.

    Args:
        sizes: room that each item takes, of several kinds, such as inputs and targets. An item needs room of all kinds.
        capacity: room of each kind in a row. An item that needs more gets a row of its own.
        borders: item numbers in ascending order, the number of items last; no row goes on past one of them.

    Returns:
        The first item of each row, and the number of items.
    """
    item_count, kind_count = sizes.shape
    ends = np.concatenate([np.zeros((1, kind_count), np.int64), np.cumsum(sizes, axis=0)])
    if borders is None:
        borders = np.array([item_count])
    row_starts = [0]
    while row_starts[-1] < item_count:
        first = row_starts[-1]
        stop = int(borders[np.searchsorted(borders, first, side="right")])
        for kind, room in enumerate(capacity):
            fitting_stop = np.searchsorted(ends[:, kind], ends[first, kind] + room, side="right") - 1
            stop = min(stop, int(fitting_stop))
        row_starts.append(max(stop, first + 1))
    return np.array(row_starts, np.int64)


def _document_spans(corpus: Corpus) -> Spans:
    return np.stack([corpus.offsets[:-1], corpus.offsets[1:]], axis=1)


def _cut_documents(offsets: Int64[np.ndarray, "documents_and_end"], length: int) -> Spans:
    """Return spans of at most `length` tokens that cover every document."""
    piece_counts = (np.diff(offsets) + length - 1) // length
    document = np.repeat(np.arange(len(piece_counts)), piece_counts)
    first_piece = np.cumsum(piece_counts) - piece_counts
    piece_in_document = np.arange(len(document)) - first_piece[document]
    starts = offsets[document] + piece_in_document * length
    stops = np.minimum(starts + length, offsets[document + 1])
    return np.stack([starts, stops], axis=1)


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
