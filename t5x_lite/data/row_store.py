"""Row plans on disk: made once, stored in the folder of their corpus, and mapped into memory by all who read rows.

Beside its corpus, the plan of a row rule with the fingerprint KEY is:

* `rows-KEY.SPLIT.spans.npy`: int64 `[spans, 2]`, start and stop of spans of the token stream, row after row;
* `rows-KEY.SPLIT.starts.npy`: int64 `[rows + 1]`, the first span of each row, and the number of spans;
* `rows-KEY.json`: the rule, the corpus, the statistics of both splits, and the checksums of the arrays. It is written
  last, so that a plan with this file is complete. Rows that are not packed have this file alone.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from pydantic import BaseModel, ConfigDict

from t5x_lite.data.array_files import ArrayFile, file_checksum, map_array
from t5x_lite.data.corpus import Corpus
from t5x_lite.data.corpus_lock import CorpusLock
from t5x_lite.data.row_plan import DocumentRows, PackedRows, RowPlan, StreamWindows
from t5x_lite.data.row_planner import plan_rows
from t5x_lite.data.row_rule import RowRule
from t5x_lite.data.row_statistics import RowStatistics, add_statistics, count_documents, count_stream
from t5x_lite.data.shards import SPLITS, Split
from t5x_lite.errors import UserError
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

    def checksums(self) -> dict[str, int]:
        """Return the CRC-32 of the arrays of all splits, by the names of their files.

        Raises:
            OSError: a file cannot be read.
        """
        paths = [path for split in SPLITS for path in (self.spans(split), self.starts(split))]
        return {path.name: file_checksum(path) for path in paths}


class StoredPlan(BaseModel):
    """The content of a plan's JSON file.

    Attributes:
        corpus: name of the corpus folder, which ends in the fingerprint of its text.
        corpus_tokens: number of tokens in each split of the corpus.
        rule: description of the row rule.
        statistics: counts of each split.
        checksums: CRC-32 of each array's file, by its name; empty for rows that are not packed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: str
    corpus_tokens: dict[Split, int]
    rule: dict[str, object]
    statistics: dict[Split, RowStatistics]
    checksums: dict[str, int]


class StoredRows(PackedRows):
    """Rows of a plan on disk. A copy in another process opens the files again.

    Raises:
        UserError: a file is missing or damaged.
    """

    def __init__(self, corpus: Corpus, rule: RowRule) -> None:
        self.rule = rule
        files = _PlanFiles(corpus.folder, rule.fingerprint)
        spans = _map_rows(files.spans(corpus.split), columns=2)
        super().__init__(corpus, spans, _map_rows(files.starts(corpus.split)), rule.length)

    def __reduce__(self) -> tuple[type["StoredRows"], tuple[Corpus, RowRule]]:
        return StoredRows, (self.corpus, self.rule)


def _map_rows(path: Path, columns: int | None = None) -> Int64[np.ndarray, "..."]:
    try:
        return map_array(path, columns)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: is damaged: {reason}; run the same command again, and the rows are planned again"
        ) from None


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

    A plan that belongs to another corpus, or of which files are missing or damaged, is replaced. The first process of a
    job verifies the checksums of a plan that is there.

    Args:
        folder: the folder of the corpus.
        rule: says how rows are packed.

    Raises:
        UserError: the plan cannot be written.
    """
    corpora = {split: Corpus(folder, split) for split in SPLITS}
    name = f"rows-{rule.fingerprint}"
    try:
        with CorpusLock(folder) as lock:
            statistics = _load_statistics(corpora, rule, is_verified=lock.is_verified(name))
            if statistics is None:
                statistics = _store_plan(corpora, rule)
            lock.mark_verified(name)
            return statistics
    except OSError as error:
        raise disk_error(folder, error, "run the same command again") from error


def _load_statistics(
    corpora: Mapping[Split, Corpus], rule: RowRule, *, is_verified: bool
) -> dict[Split, RowStatistics] | None:
    """Return the statistics of a stored plan; None if there is no complete plan of this rule for this corpus.

    Args:
        corpora: both splits of the corpus.
        rule: the rule of the plan.
        is_verified: the checksums have just been verified.
    """
    folder = corpora["train"].folder
    files = _PlanFiles(folder, rule.fingerprint)
    try:
        plan = StoredPlan.model_validate_json(files.summary.read_bytes())
        if plan.corpus != folder.name or plan.corpus_tokens != _count_tokens(corpora) or plan.rule != rule.describe():
            return None
        if rule.is_packed and not is_verified and plan.checksums != files.checksums():
            return None
        if rule.is_packed:
            for split in SPLITS:
                row_starts = map_array(files.starts(split))
                span_count = len(map_array(files.spans(split), columns=2))
                if len(row_starts) != plan.statistics[split].rows + 1 or row_starts[-1] != span_count:
                    return None
    except (KeyError, OSError, ValueError):  # pydantic's errors are ValueErrors
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
        corpus=folder.name,
        corpus_tokens=_count_tokens(corpora),
        rule=rule.describe(),
        statistics=statistics,
        checksums=files.checksums() if rule.is_packed else {},
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
