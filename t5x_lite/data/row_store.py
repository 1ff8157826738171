"""Row plans on disk: made once, stored in the folder of their corpus, and mapped into memory by all who read rows.

Beside its corpus, the plan of a row rule with the fingerprint KEY is:

* `rows-KEY.SPLIT.spans.npy`: int64 `[spans, 2]`, start and stop of spans of the token stream, row after row;
* `rows-KEY.SPLIT.starts.npy`: int64 `[rows + 1]`, the first span of each row, and the number of spans;
* `rows-KEY.json`: the rule, the corpus, and the statistics of both splits. It is written last, so that a plan with this
  file is complete. Rows that are not packed have this file alone.
"""

import fcntl
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from t5x_lite.data.array_files import ArrayFile, map_array
from t5x_lite.data.corpus import Corpus
from t5x_lite.data.row_plan import DocumentRows, PackedRows, RowPlan, StreamWindows
from t5x_lite.data.row_planner import plan_rows
from t5x_lite.data.row_rule import RowRule
from t5x_lite.data.row_statistics import RowStatistics, add_statistics, count_documents, count_stream
from t5x_lite.data.shards import SPLITS, Split
from t5x_lite.files import disk_error, replace_file
from t5x_lite.progress import track_progress


@dataclass(frozen=True)
class _PlanFiles:
    """The files of a plan."""

    folder: Path
    fingerprint: str

    @property
    def summary(self) -> Path:
        return self.folder / f"rows-{self.fingerprint}.json"

    def spans(self, split: Split) -> Path:
        return self.folder / f"rows-{self.fingerprint}.{split}.spans.npy"

    def starts(self, split: Split) -> Path:
        return self.folder / f"rows-{self.fingerprint}.{split}.starts.npy"


class StoredPlan(BaseModel):
    """The content of a plan's JSON file.

    Attributes:
        corpus: name of the corpus folder, which ends in the fingerprint of its text.
        corpus_tokens: number of tokens in each split of the corpus.
        rule: description of the row rule.
        statistics: counts of each split.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: str
    corpus_tokens: dict[Split, int]
    rule: dict[str, object]
    statistics: dict[Split, RowStatistics]


class StoredRows(PackedRows):
    """Rows of a plan on disk. A copy in another process opens the files again."""

    def __init__(self, corpus: Corpus, rule: RowRule) -> None:
        self.rule = rule
        files = _PlanFiles(corpus.folder, rule.fingerprint)
        spans = map_array(files.spans(corpus.split))
        super().__init__(corpus, spans, map_array(files.starts(corpus.split)), rule.length)

    def __reduce__(self) -> tuple[type["StoredRows"], tuple[Corpus, RowRule]]:
        return StoredRows, (self.corpus, self.rule)


def open_rows(corpus: Corpus, rule: RowRule) -> RowPlan:
    """Return the rows of a corpus. Rows that are packed need a plan, which `prepare_rows` stores."""
    match rule.data.packing:
        case "stream":
            # Every validation token is read; training rows can be shifted, and are all full.
            stride = rule.objective.stride(rule.context)
            return StreamWindows(corpus, rule.length, stride, covers_all=corpus.split == "validation")
        case "none":
            return DocumentRows(corpus, rule.length, keeps_ends=rule.objective.rows == "pairs")
        case _:
            return StoredRows(corpus, rule)


def prepare_rows(folder: Path, rule: RowRule) -> dict[Split, RowStatistics]:
    """Return the statistics of the rows of each split of a corpus, after planning the rows if there is no plan yet.

    A plan that belongs to another corpus, or of which files are missing or damaged, is replaced.

    Args:
        folder: the folder of the corpus.
        rule: says how rows are packed.

    Raises:
        UserError: the plan cannot be written.
    """
    corpora = {split: Corpus(folder, split) for split in SPLITS}
    statistics = _load_statistics(corpora, rule)
    if statistics is not None:
        return statistics
    try:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one process plans; the others wait and use its plan
            return _load_statistics(corpora, rule) or _store_plan(corpora, rule)
    except OSError as error:
        raise disk_error(folder, error, "run the same command again") from error


def _load_statistics(corpora: Mapping[Split, Corpus], rule: RowRule) -> dict[Split, RowStatistics] | None:
    """Return the statistics of a stored plan; None if there is no complete plan of this rule for this corpus."""
    folder = corpora["train"].folder
    files = _PlanFiles(folder, rule.fingerprint)
    try:
        plan = StoredPlan.model_validate_json(files.summary.read_bytes())
        if plan.corpus != folder.name or plan.corpus_tokens != _count_tokens(corpora) or plan.rule != rule.describe():
            return None
        if rule.is_packed:
            for split, statistics in plan.statistics.items():
                row_starts = map_array(files.starts(split))
                if len(row_starts) != statistics.rows + 1 or len(map_array(files.spans(split))) != row_starts[-1]:
                    return None
    except (OSError, ValueError):  # pydantic's errors and NumPy's for files that are too short are ValueErrors
        return None
    return plan.statistics


def _store_plan(corpora: Mapping[Split, Corpus], rule: RowRule) -> dict[Split, RowStatistics]:
    folder = corpora["train"].folder
    files = _PlanFiles(folder, rule.fingerprint)
    files.summary.unlink(missing_ok=True)
    statistics: dict[Split, RowStatistics] = {}
    for split, corpus in corpora.items():
        if rule.is_packed:
            statistics[split] = _store_rows(corpus, rule, files)
        elif rule.data.packing == "stream":
            statistics[split] = count_stream(corpus, rule, open_rows(corpus, rule).rows)
        else:
            statistics[split] = count_documents(corpus, rule)
    plan = StoredPlan(
        corpus=folder.name, corpus_tokens=_count_tokens(corpora), rule=rule.describe(), statistics=statistics
    )
    replace_file(files.summary, plan.model_dump_json())
    train = statistics["train"]
    message = (
        f"rows: {train.rows:,} training rows of {rule.length:,} tokens, {100 * train.fill:.1f} % full, with "
        f"{train.cut_documents:,} of {train.documents:,} documents cut, in {folder}"
    )
    print(message, file=sys.stderr, flush=True)
    return statistics


def _store_rows(corpus: Corpus, rule: RowRule, files: _PlanFiles) -> RowStatistics:
    """Plan the packed rows of one split and write them, one window in memory at a time."""
    statistics: list[RowStatistics] = []
    documents = 0
    with (
        ArrayFile(files.spans(corpus.split), columns=2) as spans,
        ArrayFile(files.starts(corpus.split)) as starts,
        track_progress("packing documents") as advance,
    ):
        advance("", 0, corpus.documents)
        starts.append(np.zeros(1, np.int64))
        for planned in plan_rows(corpus, rule):
            starts.append(spans.length + np.cumsum(planned.span_counts))
            spans.append(planned.spans)
            statistics.append(planned.statistics)
            documents += planned.statistics.documents
            advance("", documents, corpus.documents)
    return add_statistics(statistics)


def _count_tokens(corpora: Mapping[Split, Corpus]) -> dict[Split, int]:
    return {split: corpus.tokens for split, corpus in corpora.items()}
