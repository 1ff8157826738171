"""Packing of documents into rows: the time to plan them and how full they are, compared with next fit row by row."""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from t5x_lite.data.byte_tokenizer import Bytes
from t5x_lite.data.config import DataConfig
from t5x_lite.data.corpus_files import CorpusFiles, Split
from t5x_lite.data.corpus_summary import CorpusSummary, SplitCounts
from t5x_lite.data.row_rule import RowRule
from t5x_lite.data.row_store import prepare_rows
from t5x_lite.data.sorted_arrays import SortedArrayWriter
from t5x_lite.objectives import OBJECTIVES
from t5x_lite.objectives.objective import ExampleContext

DOCUMENTS = 3_000_000
DOCUMENTS_IF_QUICK = 300_000
MEAN_LOG_LENGTH = 5.5
"""Of documents whose length is log-normal with standard deviation 1: their median is 245 tokens, their mean 403."""
ROW_LENGTHS = (512, 2048, 8192)


def measure(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Measure the time of a core to plan all rows of a corpus and write the plan, and how full the rows are."""
    documents = DOCUMENTS_IF_QUICK if quick else DOCUMENTS
    lengths = np.random.default_rng(0).lognormal(MEAN_LOG_LENGTH, 1.0, documents).astype(np.int64) + 1
    table = []
    for row_length in ROW_LENGTHS:
        seconds, fill = _measure_plan(lengths, row_length)
        start = time.process_time()
        reference_fill = _next_fit_fill(lengths, row_length + 1)
        reference_seconds = time.process_time() - start
        table.append(
            {
                "documents": f"{documents:,}",
                "seq_len": row_length,
                "CPU seconds": seconds,
                "fill, %": 100 * fill,
                "next fit: CPU seconds": reference_seconds,
                "next fit: fill, %": 100 * reference_fill,
            }
        )
    return table


def _measure_plan(lengths: np.ndarray, seq_len: int) -> tuple[float, float]:
    """Return the seconds of a core that a plan takes, and how full its rows are."""
    objective = OBJECTIVES["causal"]()
    context = ExampleContext(seq_len, Bytes().vocabulary())
    rule = RowRule(DataConfig(packing="documents"), objective, context)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_index(folder, lengths)
        start = time.process_time()
        statistics = prepare_rows(folder, rule)["train"]
        return time.process_time() - start, statistics.fill


def _write_index(folder: Path, lengths: np.ndarray) -> None:
    """Write a corpus that consists of an index alone: planning reads no tokens."""
    files = CorpusFiles(str(folder))
    splits: dict[Split, SplitCounts] = {}
    lengths_of_splits: dict[Split, np.ndarray] = {"train": lengths, "validation": lengths[:0]}
    for split, values in lengths_of_splits.items():
        offsets = np.concatenate([[0], np.cumsum(values)])
        writer = SortedArrayWriter(files.starts(split, "documents"))
        writer.append(offsets)
        writer.finish()
        tokens = int(offsets[-1])
        splits[split] = SplitCounts(
            documents=len(values), tokens=tokens, text_bytes=0, replaced=0, parts=None, unit_tokens=[tokens], hash=""
        )
    summary = CorpusSummary(token_type="uint16", splits=splits)
    Path(files.summary).write_text(summary.model_dump_json())


def _next_fit_fill(lengths: np.ndarray, room: int) -> float:
    """Pack documents in a random order, and begin a row when the next does not fit. Return how full the rows are."""
    pieces = np.concatenate([np.full(int((lengths // room).sum()), room), lengths % room])
    pieces = np.random.default_rng(0).permutation(pieces[pieces > 0])
    ends = np.concatenate([[0], np.cumsum(pieces)])
    first = 0
    rows = 0
    while first < len(pieces):
        first = int(np.searchsorted(ends, ends[first] + room, side="right")) - 1
        rows += 1
    return int(ends[-1]) / (rows * room)
