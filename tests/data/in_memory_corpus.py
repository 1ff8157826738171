"""A corpus without files, for tests."""

import numpy as np

from t5x_lite.data.corpus import Corpus


class InMemoryCorpus(Corpus):
    """A corpus of documents of these lengths. The token at position p of the stream is p + 1."""

    def __init__(self, *lengths: int) -> None:
        self.offsets = np.cumsum([0, *lengths])
        self.parts = self.offsets
        self.tokens = int(self.offsets[-1])
        self.documents = len(lengths)

    def __reduce__(self) -> tuple[type[Corpus], tuple[int, ...]]:
        return InMemoryCorpus, tuple(np.diff(self.offsets).tolist())

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        positions = np.arange(start, stop)
        return (positions + 1).astype(np.int32), np.searchsorted(self.offsets, positions, side="right") - 1


def corpus_of_parts(*documents: tuple[int, ...]) -> InMemoryCorpus:
    """Return a corpus whose documents have parts (sentences or fields) of these lengths."""
    corpus = InMemoryCorpus(*(sum(part_lengths) for part_lengths in documents))
    corpus.parts = np.cumsum([0, *(length for part_lengths in documents for length in part_lengths)])
    return corpus


DOCUMENT_LENGTHS = np.random.default_rng(0).integers(3, 40, 50)
SENTENCE_LENGTHS = [tuple(np.random.default_rng(n).integers(1, 9, 3 + n % 7).tolist()) for n in range(30)]
"""Lengths of the sentences of 30 documents."""
