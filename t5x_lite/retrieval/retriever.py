"""A retriever: the encoder of queries, an index, and a search over it."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from t5x_lite.errors import UserError
from t5x_lite.loaded_model import LoadedModel
from t5x_lite.retrieval.collection import StoredPassage
from t5x_lite.retrieval.encoder import VectorEncoder
from t5x_lite.retrieval.index import Index
from t5x_lite.retrieval.search import ExactSearch, Hits, Search


class Retrieved(NamedTuple):
    """A passage and its score."""

    score: float
    stored: StoredPassage


class Retriever:
    """Finds the passages of an index for queries.

    Args:
        model: encodes the queries.
        folder: of the index.
        is_approximate: follow the graph of the index instead of comparing with every vector.

    Raises:
        UserError: no index, an incomplete one, or one for another model.
    """

    def __init__(self, model: LoadedModel, folder: Path, *, is_approximate: bool = False) -> None:
        self.encoder = VectorEncoder(model)
        self.index = Index(folder)
        self.index.check_queries(self.encoder)
        self.search: Search
        if is_approximate:
            from t5x_lite.retrieval.approximate import ApproximateSearch

            self.search = ApproximateSearch(self.index)
        else:
            shape = (len(self.index), self.index.manifest.width)
            self.search = ExactSearch(self.index.vectors, shape, model.mesh)

    def check_depth(self, count: int, option: str) -> None:
        """Refuse a number of passages that the index cannot give.

        Raises:
            UserError: names the option that it comes from.
        """
        if not 1 <= count <= len(self.index):
            raise UserError(
                f"{option} {count}: expected a number from 1 to the {len(self.index):,} passages of the index"
            )

    def hits(self, queries: Sequence[str], count: int) -> Hits:
        """Return the scores and numbers of the best passages of each query."""
        return self.search(self.encoder.queries(queries), count)

    def __call__(self, queries: Sequence[str], count: int) -> list[list[Retrieved]]:
        """Return the best passages of each query, best first."""
        hits = self.hits(queries, count)
        results = []
        for scores, numbers in zip(hits.scores, hits.numbers, strict=True):
            present = np.flatnonzero(numbers >= 0)
            results.append([Retrieved(float(scores[n]), self.index[int(numbers[n])]) for n in present])
        return results
