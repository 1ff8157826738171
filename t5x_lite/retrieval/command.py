"""`t5x-lite index` and `t5x-lite search`: build an index of passages, and find those of queries."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from t5x_lite.files import write_file
from t5x_lite.loaded_model import LoadedModel
from t5x_lite.retrieval.approximate import build_graph
from t5x_lite.retrieval.encoder import VectorEncoder
from t5x_lite.retrieval.index import Index, build_index
from t5x_lite.retrieval.recall import check_judgements, read_queries, recall_at
from t5x_lite.retrieval.retriever import Retrieved, Retriever

DEPTHS = (1, 5, 20, 100)
"""Numbers of passages of which recall is reported, up to `-k` (Karpukhin et al. 2020, Table 2)."""
SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class IndexRequest:
    """The index that a command builds.

    Attributes:
        collection: the file of the passages.
        folder: of the index.
        shard_passages: passages of a shard.
        is_approximate: also build the graph of approximate search.
    """

    collection: Path
    folder: Path
    shard_passages: int
    is_approximate: bool = False


def index_collection(model: LoadedModel, request: IndexRequest, query_model: LoadedModel | None) -> str:
    """Build an index, and return a line about it.

    Args:
        model: encodes the passages.
        request: what is built.
        query_model: encodes the queries, if it is another run.
    """
    query_encoder = None if query_model is None else VectorEncoder(query_model)
    encoder = VectorEncoder(model)
    manifest = build_index(encoder, request.collection, request.folder, request.shard_passages, query_encoder)
    line = f"{request.folder}: {manifest.passages:,} passages × {manifest.width}, of {manifest.model}"
    if request.is_approximate:
        line += f"; graph: {build_graph(Index(request.folder))}"
    return line


def search_queries(retriever: Retriever, queries: Sequence[str], count: int, *, as_json: bool) -> str:
    """Return the best passages of each query as text, or as a JSON object."""
    results = retriever(queries, count)
    if as_json:
        records = [_record(query, passages) for query, passages in zip(queries, results, strict=True)]
        return json.dumps({"queries": records}, ensure_ascii=False)
    lines = []
    for query, passages in zip(queries, results, strict=True):
        lines.append(query)
        for rank, (score, stored) in enumerate(passages, start=1):
            text = " ".join(str(stored.passage).split())[:SHOWN_CHARACTERS]
            lines.append(f"{rank:>4}  {score:9.4f}  {stored.id}  {text}")
    return "\n".join(lines)


def measure_recall(retriever: Retriever, file: Path, count: int, to: Path | None) -> dict[str, float]:
    """Return `recall_at_<k>` of the queries of a file, for the depths up to `count`, and the number of queries.

    Args:
        retriever: finds the passages.
        file: the queries; see `recall.read_queries`.
        count: passages of each query.
        to: a JSONL file to write each query's record with its passages to.

    Raises:
        UserError: the file cannot be read or written, or judges passages of another index.
    """
    queries = read_queries(file)
    check_judgements(queries, retriever.index)
    results = retriever([query.text for query in queries], count)
    is_relevant = np.zeros((len(queries), count), bool)
    for row, (query, passages) in enumerate(zip(queries, results, strict=True)):
        for rank, (_, stored) in enumerate(passages):
            is_relevant[row, rank] = query.finds(stored)
    if to is not None:
        lines = []
        for query, passages in zip(queries, results, strict=True):
            record = {**query.record, **_record(query.text, passages)}
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        write_file(to, "".join(lines))
    depths = sorted({depth for depth in DEPTHS if depth <= count} | {count})
    metrics: dict[str, float] = {"queries": len(queries)}
    for depth, value in recall_at(is_relevant, depths).items():
        metrics[f"recall_at_{depth}"] = value
    return metrics


def _record(query: str, passages: Sequence[Retrieved]) -> dict[str, object]:
    listed = []
    for score, stored in passages:
        listed.append({"id": stored.id, "score": score, "title": stored.passage.title, "text": stored.passage.text})
    return {"query": query, "passages": listed}
