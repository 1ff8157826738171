"""Rows of a corpus by `data.packing`, against brute force."""

import numpy as np
import pytest

from t5x_lite.data.row_plan import RowPlan
from t5x_lite.objectives import Causal, TextToText
from t5x_lite.objectives.masked import Masked
from t5x_lite.objectives.objective import TokenRow
from tests.data.in_memory_corpus import DOCUMENT_LENGTHS, SENTENCE_LENGTHS, InMemoryCorpus, corpus_of_parts, rows_of
from tests.objectives.vocabulary import context


def segments_of(row: TokenRow) -> list[np.ndarray]:
    """The tokens of each segment of a row."""
    return [row.tokens[row.segments == segment] for segment in range(1, row.segments.max() + 1)]


@pytest.mark.parametrize("window", [1, 7, 2**20])
def test_packed_rows_hold_each_document_once_and_cut_none_that_fits(window: int) -> None:
    corpus = InMemoryCorpus(*DOCUMENT_LENGTHS, 100, 33, 66, 34)
    row_plan = rows_of(corpus, Causal(), context(32), packing="documents", window=window)
    pieces: dict[int, list[tuple[int, int]]] = {document: [] for document in range(corpus.documents)}
    for number in range(row_plan.rows):
        row = row_plan.read(number)
        example = Causal().example(row, context(32), np.random.default_rng(0))
        assert 0 < int((row.segments > 0).sum()) <= 33  # a row of the objective has one token more than the model reads
        assert not row.tokens[row.segments == 0].any()
        for segment, tokens in enumerate(segments_of(row), start=1):
            document = int(np.searchsorted(corpus.offsets[:], tokens[0] - 1, side="right")) - 1
            start = int(tokens[0] - 1 - corpus.offsets[document])
            assert tokens.tolist() == list(range(tokens[0], tokens[0] + len(tokens)))
            pieces[document].append((start, start + len(tokens)))
            positions = example["positions"][example["segment_ids"] == segment]
            assert positions.tolist() == list(range(len(positions)))
    for document, length in enumerate(np.diff(corpus.offsets[:]).tolist()):
        stops = [*range(33, length, 33), length]
        assert sorted(pieces[document]) == list(zip([0, *stops[:-1]], stops, strict=True))


@pytest.mark.parametrize("packing", ["documents", "none"])
def test_every_segment_is_a_piece_of_one_document(packing: str) -> None:
    corpus = InMemoryCorpus(*DOCUMENT_LENGTHS)
    row_plan = rows_of(corpus, Causal(), context(32), packing=packing)
    tokens_in_rows: list[int] = []
    for number in range(row_plan.rows):
        row = row_plan.read(number)
        for segment in segments_of(row):
            document = np.searchsorted(corpus.offsets[:], segment[0] - 1, side="right") - 1
            assert np.array_equal(np.diff(segment), np.ones(len(segment) - 1))
            assert segment[-1] <= corpus.offsets[document + 1]
            tokens_in_rows += segment.tolist()
        assert not row.tokens[row.segments == 0].any()
        assert packing == "documents" or row.segments.max() == 1
    expected: list[int] = []
    for start, stop in zip(corpus.offsets[:], corpus.offsets[1:], strict=False):
        last = stop if packing == "documents" else min(stop, start + 33)  # a row of the objective has 33 tokens
        expected += range(start + 1, last + 1)
    assert sorted(tokens_in_rows) == expected


@pytest.mark.parametrize("within_documents", [True, False])
@pytest.mark.parametrize("window", [1, 2**20])
def test_rows_hold_whole_sentences_in_order_and_are_as_full_as_possible(within_documents: bool, window: int) -> None:
    corpus = corpus_of_parts(*SENTENCE_LENGTHS, (25, 3))
    objective = Masked(sentences="next" if within_documents else "none")
    special_tokens = 3 if within_documents else 2  # [CLS] and a [SEP] after each text
    settings = {"packing": "sentences", "parts": "line"}
    row_plan = rows_of(corpus, objective, context(20 + special_tokens), window=window, **settings)
    tokens_in_rows: list[int] = []
    for number in range(row_plan.rows):
        row = row_plan.read(number)
        is_token = row.segments > 0
        tokens = row.tokens[is_token]
        first = int(tokens[0]) - 1
        stop = int(tokens[-1])
        assert first in corpus.parts[:]
        assert stop in corpus.parts[:] or stop - first == 20  # only a sentence longer than a row is cut
        documents = np.searchsorted(corpus.offsets[:], tokens - 1, side="right") - 1
        assert len(set(documents)) == 1 or not within_documents
        if stop not in corpus.offsets[:]:  # the next sentence of the document would not have fitted
            next_sentence_stops = corpus.parts[:][np.searchsorted(corpus.parts[:], stop, side="left") + 1 :][:1]
            assert not (next_sentence_stops - first <= 20).any()
        sentence_starts = corpus.parts[:][np.searchsorted(corpus.parts[:], tokens - 1, side="right") - 1]
        segments_and_parts = set(zip(row.segments[is_token], row.parts[is_token], strict=True))
        assert len(segments_and_parts) == len(set(sentence_starts))
        tokens_in_rows += tokens.tolist()
    assert tokens_in_rows == sorted(tokens_in_rows)
    assert len(tokens_in_rows) == corpus.tokens - 5  # the end of the sentence of 25 tokens is lost


def documents_of_pairs(corpus: InMemoryCorpus, row_plan: RowPlan, number: int, lengths: np.ndarray) -> list[int]:
    """Return the documents in a row, and check the lengths of their two sides."""
    row = row_plan.read(number)
    documents: list[int] = []
    for segment, tokens in enumerate(segments_of(row), start=1):
        document = int(np.searchsorted(corpus.offsets[:], tokens[0] - 1))
        parts = row.parts[row.segments == segment]
        assert [int((parts == side).sum()) for side in (0, 1)] == lengths[document].tolist()
        documents.append(document)
    return documents


def test_fields_keep_their_roles_where_one_is_empty() -> None:
    """Pairs whose second or first field is empty, between others."""
    pairs = [(3, 2), (4, 0), (0, 5), (2, 2)]
    corpus = corpus_of_parts(*pairs)
    settings = {"format": "parallel", "field": ["en", "de"], "parts": "fields", "end_of_document": False}
    row_plan = rows_of(corpus, TextToText(target_len=8), context(32), packing="none", **settings)
    for number, (inputs, targets) in enumerate(pairs):
        row = row_plan.read(number)
        assert row.parts[row.segments > 0].tolist() == [0] * inputs + [1] * targets


def test_the_first_part_of_a_document_is_found_among_sentences() -> None:
    corpus = corpus_of_parts((3,), (1, 2), (4, 1, 1))
    assert corpus.first_parts(0, 3).tolist() == [0, 1, 3]
    assert corpus.first_parts(1, 2).tolist() == [1]
