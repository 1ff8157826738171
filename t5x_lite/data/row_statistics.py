"""Counts of the rows of a text: how full they are, and how many documents are cut."""

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Int64
from pydantic import BaseModel, ConfigDict

from t5x_lite.data.corpus import Corpus
from t5x_lite.data.row_rule import RowRule

DOCUMENTS_AT_ONCE = 2**20
"""Documents whose lengths are in memory at the same time."""


class RowStatistics(BaseModel):
    """Counts of some text and of its rows.

    Attributes:
        documents: number of documents.
        tokens: number of their tokens.
        rows: number of rows.
        cut_documents: documents that are not complete in one row.
        single_sentences: rows of one sentence, if rows hold the sentences of one document each. Their second text is
            always of another document (BERT's create_pretraining_data).
        room_used: room of each kind, such as inputs and targets, that the documents in the rows take.
        room: room of each kind in all rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    documents: int = 0
    tokens: int = 0
    rows: int = 0
    cut_documents: int = 0
    single_sentences: int = 0
    room_used: tuple[int, ...] = (0,)
    room: tuple[int, ...] = (0,)

    @property
    def fill_by_kind(self) -> list[float]:
        """Share of the rows' room of each kind that is used."""
        return [used / max(room, 1) for used, room in zip(self.room_used, self.room, strict=True)]

    @property
    def fill(self) -> float:
        """Share of the rows' room of all kinds that is used."""
        return sum(self.room_used) / max(sum(self.room), 1)

    @property
    def tokens_per_row(self) -> float:
        """Mean number of tokens in a row, of all kinds. Tokens that are cut off do not count."""
        return sum(self.room_used) / max(self.rows, 1)


def add_statistics(parts: Iterable[RowStatistics]) -> RowStatistics:
    """Return the statistics of several texts together. A text without documents may have any kinds of room."""
    listed = [part for part in parts if part.documents]
    if not listed:
        return RowStatistics()
    return RowStatistics(
        documents=sum(part.documents for part in listed),
        tokens=sum(part.tokens for part in listed),
        rows=sum(part.rows for part in listed),
        cut_documents=sum(part.cut_documents for part in listed),
        single_sentences=sum(part.single_sentences for part in listed),
        room_used=_add_kinds([part.room_used for part in listed]),
        room=_add_kinds([part.room for part in listed]),
    )


def _add_kinds(rooms: list[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*rooms, strict=True)))


def count_stream(corpus: Corpus, rule: RowRule, rows: int) -> RowStatistics:
    """Return the statistics of rows that are windows of the token stream, in an epoch without a phase.

    Args:
        corpus: the token stream.
        rule: says how long windows are.
        rows: number of windows.
    """
    stride = rule.objective.stride(rule.context)
    overlap = rule.length - stride
    end = min(rows * stride + overlap, corpus.tokens)
    cut_documents = 0
    for offsets in _offsets_in_windows(corpus):
        # A window's last tokens are the first of the next, so a document that ends there is complete in the first.
        first_window = offsets[:-1] // stride
        last_window = np.maximum(offsets[1:] - 1 - overlap, offsets[:-1]) // stride
        is_truncated = (first_window != last_window) | (offsets[1:] > end)
        cut_documents += int(is_truncated.sum())
    used = min(rows * rule.length, end + max(rows - 1, 0) * overlap)
    return RowStatistics(
        documents=corpus.documents,
        tokens=corpus.tokens,
        rows=rows,
        cut_documents=cut_documents,
        room_used=(used,),
        room=(rows * rule.length,),
    )


def count_documents(corpus: Corpus, rule: RowRule) -> RowStatistics:
    """Return the statistics of rows that are one document each."""
    room_used = np.zeros(len(rule.capacity), np.int64)
    cut_documents = 0
    for start in range(0, corpus.documents, DOCUMENTS_AT_ONCE):
        stop = min(start + DOCUMENTS_AT_ONCE, corpus.documents)
        if rule.objective.rows.keeps_ends:
            document_parts = corpus.part_lengths(start, stop)
            sizes = rule.sizes(document_parts)
        else:
            document_parts = np.diff(corpus.offsets[start : stop + 1])[:, None]
            sizes = rule.sizes(np.minimum(document_parts, rule.length))
        room_used += sizes.sum(0)
        cut_documents += int(rule.objective.is_truncated(document_parts, rule.context).sum())
    return RowStatistics(
        documents=corpus.documents,
        tokens=corpus.tokens,
        rows=corpus.documents,
        cut_documents=cut_documents,
        room_used=tuple(room_used.tolist()),
        room=tuple(corpus.documents * room for room in rule.capacity),
    )


def _offsets_in_windows(corpus: Corpus) -> Iterator[Int64[np.ndarray, "documents_and_end"]]:
    """Yield the starts of documents and the end of the last, some documents at a time."""
    for first in range(0, corpus.documents, DOCUMENTS_AT_ONCE):
        yield corpus.offsets[first : first + DOCUMENTS_AT_ONCE + 1]
