"""Rows of a corpus by `data.packing`, against brute force."""

import numpy as np
import pytest

from t5x_lite.data.config import DataConfig
from t5x_lite.data.row_plan import PackedRows, build_row_plan, pack_documents, pack_sentences
from t5x_lite.objectives import Causal
from t5x_lite.objectives.objective import TokenRow
from t5x_lite.objectives.text_to_text import TextToText
from tests.data.in_memory_corpus import DOCUMENT_LENGTHS, SENTENCE_LENGTHS, InMemoryCorpus, corpus_of_parts
from tests.objectives.vocabulary import context


def segments_of(row: TokenRow) -> list[np.ndarray]:
    """The tokens of each segment of a row."""
    return [row.tokens[row.segments == segment] for segment in range(1, row.segments.max() + 1)]


@pytest.mark.parametrize("packing", ["documents", "none"])
def test_every_segment_is_a_piece_of_one_document(packing: str) -> None:
    corpus = InMemoryCorpus(*DOCUMENT_LENGTHS)
    row_plan = build_row_plan(corpus, DataConfig.model_validate({"packing": packing}), Causal(), context(32), seed=0)
    tokens_in_rows: list[int] = []
    for number in range(row_plan.rows):
        row = row_plan.read(number)
        for segment in segments_of(row):
            document = np.searchsorted(corpus.offsets, segment[0] - 1, side="right") - 1
            assert np.array_equal(np.diff(segment), np.ones(len(segment) - 1))
            assert segment[-1] <= corpus.offsets[document + 1]
            tokens_in_rows += segment.tolist()
        assert not row.tokens[row.segments == 0].any()
        assert packing == "documents" or row.segments.max() == 1
    expected: list[int] = []
    for start, stop in zip(corpus.offsets, corpus.offsets[1:], strict=False):
        last = stop if packing == "documents" else min(stop, start + 33)  # a row of the objective has 33 tokens
        expected += range(start + 1, last + 1)
    assert sorted(tokens_in_rows) == expected


@pytest.mark.parametrize("within_documents", [True, False])
def test_rows_hold_whole_sentences_in_order_and_are_as_full_as_possible(within_documents: bool) -> None:
    corpus = corpus_of_parts(*SENTENCE_LENGTHS, (25, 3))
    row_plan = pack_sentences(corpus, 20, within_documents=within_documents)
    tokens_in_rows: list[int] = []
    for number in range(row_plan.rows):
        row = row_plan.read(number)
        is_token = row.segments > 0
        tokens = row.tokens[is_token]
        first = int(tokens[0]) - 1
        stop = int(tokens[-1])
        assert first in corpus.parts
        assert stop in corpus.parts or stop - first == 20  # only a sentence longer than a row is cut
        documents = np.searchsorted(corpus.offsets, tokens - 1, side="right") - 1
        assert len(set(documents)) == 1 or not within_documents
        if stop not in corpus.offsets:  # the next sentence of the document would not have fitted
            next_sentence_stops = corpus.parts[np.searchsorted(corpus.parts, stop, side="left") + 1 :][:1]
            assert not (next_sentence_stops - first <= 20).any()
        sentence_starts = corpus.parts[np.searchsorted(corpus.parts, tokens - 1, side="right") - 1]
        segments_and_parts = set(zip(row.segments[is_token], row.parts[is_token], strict=True))
        assert len(segments_and_parts) == len(set(sentence_starts))
        tokens_in_rows += tokens.tolist()
    assert tokens_in_rows == sorted(tokens_in_rows)
    assert len(tokens_in_rows) == corpus.tokens - 5  # the end of the sentence of 25 tokens is lost


def test_pairs_are_packed_until_inputs_or_targets_are_full() -> None:
    """Next-fit packing with two kinds of room, by a loop."""
    lengths = np.random.default_rng(3).integers(1, 12, (60, 2))
    corpus = corpus_of_parts(*(tuple(pair) for pair in lengths.tolist()))
    row_plan = pack_documents(corpus, TextToText(target_len=16), context(24, "encoder_decoder"), None)
    expected: list[list[int]] = [[]]
    room = np.array([24, 16])
    for document, sizes in enumerate(lengths + 1):
        if (sizes > room).any():
            expected.append([])
            room = np.array([24, 16])
        room = room - sizes
        expected[-1].append(document)
    packed = [documents_of_pairs(corpus, row_plan, number, lengths) for number in range(row_plan.rows)]
    assert packed == expected


def documents_of_pairs(corpus: InMemoryCorpus, row_plan: PackedRows, number: int, lengths: np.ndarray) -> list[int]:
    """Return the documents in a row, and check the lengths of their two sides."""
    row = row_plan.read(number)
    documents: list[int] = []
    for segment, tokens in enumerate(segments_of(row), start=1):
        document = int(np.searchsorted(corpus.offsets, tokens[0] - 1))
        parts = row.parts[row.segments == segment]
        assert [int((parts == side).sum()) for side in (0, 1)] == lengths[document].tolist()
        documents.append(document)
    return documents
