"""A corpus without files, for tests, and its rows."""

from collections.abc import Sequence

import numpy as np

from t5x_lite.data.config import DataConfig
from t5x_lite.data.corpus import Corpus
from t5x_lite.data.corpus_files import Split
from t5x_lite.data.row_plan import PackedRows, RowPlan
from t5x_lite.data.row_planner import WINDOW, plan_rows
from t5x_lite.data.row_rule import RowRule
from t5x_lite.data.row_store import open_rows
from t5x_lite.data.sorted_arrays import BLOCK, SortedArray
from t5x_lite.objectives.objective import ExampleContext, Objective


class InMemoryArray:
    """An array that is in memory, with the interface of a stored one."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.values[start:stop]


def sorted_array(values: np.ndarray) -> SortedArray:
    """Return a sorted array in memory."""
    return SortedArray(InMemoryArray(values), values[::BLOCK])


class InMemoryCorpus(Corpus):
    """A corpus of documents of these lengths. The token at position p of the stream is p + 1."""

    def __init__(self, *lengths: int, split: Split = "train") -> None:
        self.split = split
        self.starts = np.cumsum([0, *lengths])
        self.offsets = sorted_array(self.starts)
        self.parts = self.offsets
        self.tokens = int(self.starts[-1])
        self.documents = len(lengths)

    def __reduce__(self) -> tuple[type[Corpus], tuple[int, ...]]:
        return InMemoryCorpus, tuple(np.diff(self.starts).tolist())

    def read_spans(self, spans: Sequence[Sequence[int]]) -> np.ndarray:
        return np.concatenate([np.arange(start + 1, stop + 1, dtype=np.int32) for start, stop in spans])


def corpus_of_parts(*documents: tuple[int, ...]) -> InMemoryCorpus:
    """Return a corpus whose documents have parts (sentences or fields) of these lengths."""
    corpus = InMemoryCorpus(*(sum(part_lengths) for part_lengths in documents))
    lengths = [length for part_lengths in documents for length in part_lengths]
    corpus.parts = sorted_array(np.cumsum([0, *lengths]))
    return corpus


def rows_of(
    corpus: Corpus, objective: Objective, context: ExampleContext, *, window: int = WINDOW, **data: object
) -> RowPlan:
    """Return the rows of a corpus by these settings of `data`, planned in memory."""
    rule = RowRule(DataConfig.model_validate(data), objective, context)
    if not rule.is_packed:
        return open_rows(corpus, rule)
    planned = list(plan_rows(corpus, rule, window))
    span_counts = np.concatenate([np.zeros(1, np.int64), *(rows.span_counts for rows in planned)])
    spans = np.concatenate([np.zeros((0, 2), np.int64), *(rows.spans for rows in planned)])
    return PackedRows(
        corpus,
        InMemoryArray(spans),
        InMemoryArray(np.cumsum(span_counts)),
        rule.length,
        within_documents=rule.data.packing == "documents",
    )


DOCUMENT_LENGTHS = np.random.default_rng(0).integers(3, 40, 50)
SENTENCE_LENGTHS = [tuple(np.random.default_rng(n).integers(1, 9, 3 + n % 7).tolist()) for n in range(30)]
"""Lengths of the sentences of 30 documents."""
