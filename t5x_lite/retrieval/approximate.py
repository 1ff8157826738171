"""Approximate search by faiss's HNSW graph of inner products (Malkov & Yashunin 2018; Karpukhin et al. 2020, §4.1)."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from t5x_lite.errors import UserError, one_line
from t5x_lite.extras import require_library
from t5x_lite.progress import track_progress
from t5x_lite.retrieval.index import Index
from t5x_lite.retrieval.search import Hits

GRAPH_FILE = "hnsw.faiss"
NEIGHBOURS = 32
"""Links of a vector in each layer of the graph (M)."""
BUILD_CANDIDATES = 200
"""Candidates that are compared when a vector is added (efConstruction)."""
SEARCH_CANDIDATES = 128
"""Candidates that are compared for a query, at least `k` (efSearch)."""
ROWS_AT_ONCE = 2**16
SUBJECT = "approximate search"


def build_graph(index: Index) -> Path:
    """Build the graph of an index, and write it to the folder of the index. An existing one is replaced.

    Raises:
        UserError: faiss is not installed, or the file cannot be written.
    """
    require_library(SUBJECT, "faiss", "retrieval")
    import faiss

    graph = faiss.IndexHNSWFlat(index.manifest.width, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = BUILD_CANDIDATES
    with track_progress("linking") as advance:
        for start in range(0, len(index), ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, len(index))
            graph.add(index.vectors(start, stop))
            advance("", stop, len(index))
    path = index.folder / GRAPH_FILE
    try:
        faiss.write_index(graph, str(path))
    except RuntimeError as error:
        raise UserError(f"{path}: cannot be written: {one_line(error)}") from None
    return path


class ApproximateSearch:
    """Follows the graph of an index; it may miss some of the nearest passages, and reads few of the vectors.

    Args:
        index: an index whose graph has been built.

    Raises:
        UserError: faiss is not installed, or there is no graph of this index.
    """

    def __init__(self, index: Index) -> None:
        require_library(SUBJECT, "faiss", "retrieval")
        import faiss

        path = index.folder / GRAPH_FILE
        if not path.is_file():
            raise UserError(f"index {index.folder}: has no graph; `t5x-lite index … --approximate` builds it")
        try:
            self._graph: Any = faiss.read_index(str(path))  # its class has no stub of `hnsw`
        except RuntimeError as error:
            raise UserError(f"{path}: cannot be read: {one_line(error)}") from None
        if (self._graph.ntotal, self._graph.d) != (len(index), index.manifest.width):
            raise UserError(
                f"{path}: is a graph of {self._graph.ntotal:,} vectors of width {self._graph.d}, and the index has "
                f"{len(index):,} of width {index.manifest.width}; build it again with --approximate"
            )

    def __call__(self, queries: Float[np.ndarray, "queries d"], k: int) -> Hits:
        """Return up to `k` passages with high inner products for each query; the number -1 stands for none."""
        self._graph.hnsw.efSearch = max(SEARCH_CANDIDATES, k)
        scores, numbers = self._graph.search(np.ascontiguousarray(queries, np.float32), k)
        return Hits(scores, numbers)
