"""Plan rows of whole documents or sentences. A plan is a function of the corpus and of the row rule alone.

Documents are packed by best fit within windows of about a million consecutive documents, so that memory does not grow
with the corpus. No document that fits in a row is cut (Ding et al. 2024, Fewer Truncations Improve Language Modeling).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from t5x_lite.data.corpus import Corpus
from t5x_lite.data.packing import best_fit, next_fit
from t5x_lite.data.row_rule import RowRule
from t5x_lite.data.row_statistics import RowStatistics

WINDOW = 2**20
"""Documents, or sentences, among which rows are packed."""
PACKING_SEED = 2
"""First word of the seed of the order of documents and rows in a window. Another value would be another plan."""


@dataclass(frozen=True)
class PlannedRows:
    """Some rows of a plan.

    Attributes:
        spans: start and stop of each span of the token stream, in the order in which rows hold them.
        span_counts: number of spans in each row.
        statistics: counts of the text in these rows.
    """

    spans: Int64[np.ndarray, "spans 2"]
    span_counts: Int64[np.ndarray, "rows"]
    statistics: RowStatistics


def plan_rows(corpus: Corpus, rule: RowRule, window: int = WINDOW) -> Iterator[PlannedRows]:
    """Yield the rows of `data.packing` documents or sentences, window by window.

    Args:
        corpus: the token stream.
        rule: says how rows are packed.
        window: documents, or sentences, that are considered together.
    """
    if rule.data.packing == "documents":
        yield from _pack_documents(corpus, rule, window)
    else:
        yield from _pack_sentences(corpus, rule, window)


def _pack_documents(corpus: Corpus, rule: RowRule, window: int) -> Iterator[PlannedRows]:
    """Pack whole documents by best fit. One longer than a row is cut into rows first, unless it is a pair of texts."""
    first = 0
    window_number = 0
    while first < corpus.documents:
        # Documents that fill many rows count as many.
        token_limit = corpus.offsets[first] + window * rule.length
        stop = int(corpus.offsets.search([token_limit], side="right")[0]) - 1
        stop = min(max(stop, first + 1), first + window, corpus.documents)
        yield _pack_window(corpus, rule, slice(first, stop), np.random.default_rng((PACKING_SEED, window_number)))
        first = stop
        window_number += 1


def _pack_window(corpus: Corpus, rule: RowRule, documents: slice, rng: np.random.Generator) -> PlannedRows:
    """Pack some documents. The order of rows, and of the documents in a row, says nothing about their lengths."""
    offsets = corpus.offsets[documents.start : documents.stop + 1]
    document_parts = np.diff(offsets)[:, None]
    if rule.objective.rows.keeps_ends:
        document_parts = corpus.part_lengths(documents.start, documents.stop)
        spans = np.stack([offsets[:-1], offsets[1:]], axis=1)
        sizes = rule.sizes(document_parts)
    else:
        spans = _cut_documents(offsets, rule.length)
        sizes = rule.sizes(np.diff(spans, axis=1))
    order = rng.permutation(len(spans))
    spans = spans[order]
    rows = best_fit(sizes[order], rule.capacity)
    row_count = int(rows.max()) + 1
    rows = rng.permutation(row_count)[rows]
    statistics = RowStatistics(
        documents=len(offsets) - 1,
        tokens=int(offsets[-1] - offsets[0]),
        rows=row_count,
        cut_documents=int(rule.objective.is_truncated(document_parts, rule.context).sum()),
        room_used=tuple(sizes.sum(0).tolist()),
        room=tuple(row_count * room for room in rule.capacity),
    )
    return PlannedRows(spans[np.argsort(rows, kind="stable")], np.bincount(rows), statistics)


def _cut_documents(offsets: Int64[np.ndarray, "documents_and_end"], length: int) -> Int64[np.ndarray, "spans 2"]:
    """Return spans of at most `length` tokens that cover every document."""
    piece_counts = (np.diff(offsets) + length - 1) // length
    document = np.repeat(np.arange(len(piece_counts)), piece_counts)
    first_piece = np.cumsum(piece_counts) - piece_counts
    piece_in_document = np.arange(len(document)) - first_piece[document]
    starts = offsets[document] + piece_in_document * length
    stops = np.minimum(starts + length, offsets[document + 1])
    return np.stack([starts, stops], axis=1)


def _pack_sentences(corpus: Corpus, rule: RowRule, window: int) -> Iterator[PlannedRows]:
    """Pack whole sentences in the order of the text, by next fit. A sentence that is longer than a row is cut short.

    If the objective is on sentences, a row ends where its document ends.
    """
    sentence_count = len(corpus.parts) - 1
    window = max(window, rule.length + 1)  # so that a window is never all of one row
    last_cut = -1
    first = 0
    while first < sentence_count:
        stop = min(first + window, sentence_count)
        parts = corpus.parts[first : stop + 1]
        borders = np.array([len(parts) - 1])
        if rule.objective.rows.has_second_sentence:
            borders = np.append(_document_borders(corpus, parts), borders)
        row_starts = next_fit(np.diff(parts), rule.length, borders)
        if stop < sentence_count:
            row_starts = row_starts[:-1]  # the last row may have room for sentences of the next window
        starts = parts[row_starts[:-1]]
        ends = parts[row_starts[1:]]
        spans = np.stack([starts, np.minimum(ends, starts + rule.length)], axis=1)
        cut = _documents_cut(corpus, spans, ends)
        single_sentences = 0
        if rule.objective.rows.has_second_sentence:
            single_sentences = int((np.diff(row_starts) == 1).sum())
        first_document, stop_document = corpus.offsets.search([starts[0], ends[-1]])
        statistics = RowStatistics(
            documents=int(min(stop_document, corpus.documents) - first_document),
            tokens=int(ends[-1] - starts[0]),
            rows=len(spans),
            cut_documents=int((cut > last_cut).sum()),
            single_sentences=single_sentences,
            room_used=(int(np.diff(spans, axis=1).sum()),),
            room=(len(spans) * rule.length,),
        )
        yield PlannedRows(spans, np.ones(len(spans), np.int64), statistics)
        last_cut = int(cut.max(initial=last_cut))
        first += int(row_starts[-1])


def _document_borders(corpus: Corpus, parts: Int64[np.ndarray, "parts_and_end"]) -> Int64[np.ndarray, "borders"]:
    """Return the numbers of the sentences, among these, with which a document begins, without the first."""
    first, stop = corpus.offsets.search([parts[0] + 1, parts[-1]])
    return np.searchsorted(parts, corpus.offsets[first:stop])


def _documents_cut(
    corpus: Corpus, spans: Int64[np.ndarray, "rows 2"], ends: Int64[np.ndarray, "rows"]
) -> Int64[np.ndarray, "documents"]:
    """Return the numbers of documents that are not complete in one of these rows.

    Args:
        corpus: the token stream.
        spans: the text of each row.
        ends: where the text of each row would end if it were not cut short.
    """
    documents = corpus.offsets.search(spans[:, 0], side="right") - 1
    begins_inside = corpus.offsets.take(documents) != spans[:, 0]
    is_cut_short = spans[:, 1] < ends
    return np.unique(documents[begins_inside | is_cut_short])
