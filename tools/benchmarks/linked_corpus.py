"""A corpus of any size that takes no room: each of its arrays is one real shard, and links to it for all others."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np

from t5x_lite.data.chunked_arrays import MAX_LENGTH, ArraySpec
from t5x_lite.data.corpus_files import CorpusFiles, Split
from t5x_lite.data.corpus_summary import CorpusSummary, SplitCounts
from t5x_lite.data.row_rule import RowRule
from t5x_lite.data.row_statistics import RowStatistics
from t5x_lite.data.row_store import StoredPlan, plan_files
from t5x_lite.data.sorted_arrays import BLOCK, SPARSE_INDEX, VALUES

DOCUMENTS_OF_A_UNIT = 10**5
TOKENS_OF_A_DOCUMENT = 1000
DOCUMENTS_OF_A_ROW = 2


def write_linked_corpus(folder: Path, rule: RowRule, documents: int) -> None:
    """Write a corpus of equally long documents, and the plan of its packed rows.

    Its tokens, the starts of its documents and its rows are right in the first shard of their arrays, and repeat there.

    Args:
        folder: where to write it.
        rule: of the rows.
        documents: a multiple of `DOCUMENTS_OF_A_UNIT`, or fewer.
    """
    files = CorpusFiles(str(folder))
    tokens = documents * TOKENS_OF_A_DOCUMENT
    unit_documents = min(documents, DOCUMENTS_OF_A_UNIT)
    units = documents // unit_documents
    spec = files.tokens("train", "uint16")
    row_shards = -(-unit_documents * TOKENS_OF_A_DOCUMENT // spec.layout.shard[1])
    _write_shard(
        spec,
        np.arange(spec.layout.shard[1])[None] % 50021,
        [MAX_LENGTH, MAX_LENGTH],
        product(range(units), range(row_shards)),
    )
    _write_starts(files, documents)
    counts = SplitCounts(
        documents=documents,
        tokens=tokens,
        text_bytes=4 * tokens,
        replaced=0,
        parts=None,
        unit_tokens=[unit_documents * TOKENS_OF_A_DOCUMENT] * units,
        hash="",
    )
    summary = CorpusSummary(token_type="uint16", splits={"train": counts})
    Path(files.summary).write_text(summary.model_dump_json())
    _write_plan(folder, rule, documents)


def _write_starts(files: CorpusFiles, documents: int) -> None:
    name = files.starts("train", "documents")
    values = ArraySpec(name, VALUES, "")
    shard_length = VALUES.shard[0]
    last = documents // shard_length
    _write_shard(values, np.arange(shard_length) * TOKENS_OF_A_DOCUMENT, [MAX_LENGTH], ((n,) for n in range(last)))
    ends = np.arange(last * shard_length, documents + 1) * TOKENS_OF_A_DOCUMENT
    values.create([MAX_LENGTH])[last * shard_length : documents + 1].write(ends).result()
    sparse_index = np.arange(0, documents + 1, BLOCK) * TOKENS_OF_A_DOCUMENT
    ArraySpec(f"{name}.sparse", SPARSE_INDEX, "").create([MAX_LENGTH])[: len(sparse_index)].write(sparse_index).result()


def _write_plan(folder: Path, rule: RowRule, documents: int) -> None:
    rows = documents // DOCUMENTS_OF_A_ROW
    files = plan_files(str(folder), rule)
    spans = files.spans("train")
    starts = np.arange(spans.layout.shard[0]) * TOKENS_OF_A_DOCUMENT
    pairs = np.stack([starts, starts + TOKENS_OF_A_DOCUMENT], axis=1)
    _write_shard(spans, pairs, [MAX_LENGTH, 2], ((n, 0) for n in range(documents // len(pairs) + 1)))
    row_starts = files.starts("train")
    shard_length = row_starts.layout.shard[0]
    last = rows // shard_length
    _write_shard(row_starts, np.arange(shard_length) * DOCUMENTS_OF_A_ROW, [MAX_LENGTH], ((n,) for n in range(last)))
    ends = np.arange(last * shard_length, rows + 1) * DOCUMENTS_OF_A_ROW
    row_starts.create([MAX_LENGTH])[last * shard_length : rows + 1].write(ends).result()
    statistics = RowStatistics(documents=documents, tokens=documents * TOKENS_OF_A_DOCUMENT, rows=rows)
    splits: tuple[Split, ...] = ("train", "validation")
    plan = StoredPlan(
        corpus=folder.name,
        corpus_tokens={"train": documents * TOKENS_OF_A_DOCUMENT, "validation": 0},
        rule=rule.describe(),
        statistics=dict.fromkeys(splits, statistics),
        spans=dict.fromkeys(splits, documents),
    )
    Path(files.summary).write_text(plan.model_dump_json())


def _write_shard(spec: ArraySpec, values: np.ndarray, shape: list[int], numbers: Iterator[tuple[int, ...]]) -> None:
    """Write the first shard of an array, and links to it with the numbers of the others."""
    region = tuple(slice(0, size) for size in values.shape)
    spec.create(shape)[region].write(values.astype(spec.layout.dtype)).result()
    folder = Path(spec.name) / "c"
    first = folder.joinpath(*"0" * values.ndim)
    for number in numbers:
        link = folder.joinpath(*map(str, number))
        if not link.exists():
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(first)
