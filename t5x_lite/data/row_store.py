"""Row plans in storage: made once, kept in the folder of their corpus, and read a row at a time.

Beside its corpus, the plan of a row rule with the fingerprint KEY is:

* `rows-KEY.SPLIT.spans`: `[spans, 2]`, start and stop of spans of the token stream, row after row;
* `rows-KEY.SPLIT.starts`: `[rows + 1]`, the first span of each row, and the number of spans;
* `rows-KEY.json`: the rule, the corpus, and the statistics of both splits. It is written last, so that a plan with this
  file is complete. Rows that are not packed have this file alone.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeInt

from t5x_lite.data.chunked_arrays import MAX_LENGTH, ArraySpec, ArrayWriter, Layout, StoredArray
from t5x_lite.data.corpus import Corpus
from t5x_lite.data.corpus_files import SPLITS, Split
from t5x_lite.data.corpus_lock import lock_folder
from t5x_lite.data.row_plan import DocumentRows, PackedRows, RowPlan, StreamWindows
from t5x_lite.data.row_planner import plan_rows
from t5x_lite.data.row_rule import RowRule
from t5x_lite.data.row_statistics import RowStatistics, add_statistics, count_documents, count_stream
from t5x_lite.errors import UserError
from t5x_lite.files import disk_error
from t5x_lite.progress import track_progress
from t5x_lite.storage import file_exists, join, read_bytes, write_bytes

SPANS = Layout("int64", (2**12, 2), (2**21, 2))
STARTS = Layout("int64", (2**12,), (2**22,))


@dataclass(frozen=True)
class PlanFiles:
    """The files of a plan."""

    folder: str
    fingerprint: str

    @property
    def summary(self) -> str:
        """The description of the plan."""
        return join(self.folder, f"rows-{self.fingerprint}.json")

    def spans(self, split: Split) -> ArraySpec:
        """Spans of the token stream."""
        return self._spec(f"{split}.spans", SPANS)

    def starts(self, split: Split) -> ArraySpec:
        """The first span of each row."""
        return self._spec(f"{split}.starts", STARTS)

    @property
    def remedy(self) -> str:
        """The remedy for a damaged plan."""
        return f"delete {join(self.folder, f'rows-{self.fingerprint}.*')}, and the rows are planned again"

    def damaged(self, reason: str) -> UserError:
        """Return the error for a damaged plan."""
        return UserError(f"{self.summary}: is damaged: {reason}; {self.remedy}")

    def _spec(self, name: str, layout: Layout) -> ArraySpec:
        return ArraySpec(join(self.folder, f"rows-{self.fingerprint}.{name}"), layout, self.remedy)


def plan_files(folder: str, rule: RowRule) -> PlanFiles:
    """Return the files of the plan of a rule in the folder of a corpus."""
    return PlanFiles(folder, rule.fingerprint)


class StoredPlan(BaseModel):
    """The content of a plan's JSON file.

    Attributes:
        corpus: name of the corpus folder, which ends in the fingerprint of its text.
        corpus_tokens: number of tokens in each split of the corpus.
        rule: description of the row rule.
        statistics: counts of each split.
        spans: number of spans in the rows of each split; empty for rows that are not packed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: str
    corpus_tokens: dict[Split, int]
    rule: dict[str, object]
    statistics: dict[Split, RowStatistics]
    spans: dict[Split, NonNegativeInt]


class StoredRows(PackedRows):
    """Rows of a stored plan. A copy in another process opens the files again.

    Raises:
        UserError: there is no plan of these rows.
    """

    def __init__(self, corpus: Corpus, rule: RowRule) -> None:
        self.rule = rule
        files = plan_files(corpus.folder, rule)
        plan = _read_plan(files, {corpus.split: corpus}, rule)
        if plan is None:
            raise files.damaged("it is not the plan of these rows")
        spans = StoredArray(files.spans(corpus.split), plan.spans[corpus.split])
        row_count = plan.statistics[corpus.split].rows
        row_starts = StoredArray(files.starts(corpus.split), row_count + 1)
        if row_starts.read(row_count, row_count + 1)[0] != len(spans):
            raise files.damaged("the rows end in another place than their spans")
        super().__init__(corpus, spans, row_starts, rule.length, within_documents=rule.data.packing == "documents")

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
            return DocumentRows(corpus, rule.length, keeps_ends=rule.objective.rows.keeps_ends)
        case _:
            return StoredRows(corpus, rule)


def prepare_rows(folder: str | Path, rule: RowRule) -> dict[Split, RowStatistics]:
    """Return the statistics of the rows of each split of a corpus, after planning the rows if there is no plan yet.

    A plan that belongs to another corpus is replaced.

    Args:
        folder: the folder of the corpus.
        rule: says how rows are packed.

    Raises:
        UserError: the plan cannot be written.
    """
    corpora: dict[Split, Corpus] = {split: Corpus(folder, split) for split in SPLITS}
    files = plan_files(str(folder), rule)
    try:
        with lock_folder(files.folder):
            plan = _read_plan(files, corpora, rule)
            return plan.statistics if plan is not None else _store_plan(corpora, rule)
    except OSError as error:
        raise disk_error(folder, error, "run the same command again") from error


def _read_plan(files: PlanFiles, corpora: Mapping[Split, Corpus], rule: RowRule) -> StoredPlan | None:
    """Return the description of a stored plan; None if there is no complete plan of this rule for these splits."""
    if not file_exists(files.summary):
        return None
    try:
        plan = StoredPlan.model_validate_json(read_bytes(files.summary))
    except (OSError, ValueError):  # pydantic's errors are ValueErrors
        return None
    tokens = {split: plan.corpus_tokens.get(split) for split in corpora}
    is_complete = set(plan.statistics) == set(SPLITS) and set(plan.spans) == (set(SPLITS) if rule.is_packed else set())
    name = files.folder.rpartition("/")[2]
    if (plan.corpus, tokens, plan.rule) != (name, _count_tokens(corpora), rule.describe()) or not is_complete:
        return None
    return plan


def _store_plan(corpora: Mapping[Split, Corpus], rule: RowRule) -> dict[Split, RowStatistics]:
    folder = corpora["train"].folder
    files = plan_files(folder, rule)
    statistics: dict[Split, RowStatistics] = {}
    spans: dict[Split, int] = {}
    for split, corpus in corpora.items():
        if rule.is_packed:
            statistics[split], spans[split] = _store_rows(corpus, rule, files)
        elif rule.data.packing == "stream":
            statistics[split] = count_stream(corpus, rule, open_rows(corpus, rule).rows)
        else:
            statistics[split] = count_documents(corpus, rule)
    plan = StoredPlan(
        corpus=folder.rpartition("/")[2],
        corpus_tokens=_count_tokens(corpora),
        rule=rule.describe(),
        statistics=statistics,
        spans=spans,
    )
    write_bytes(files.summary, plan.model_dump_json())
    train = statistics["train"]
    message = (
        f"rows: {train.rows:,} training rows of {rule.length:,} tokens, {100 * train.fill:.1f} % full, with "
        f"{train.cut_documents:,} of {train.documents:,} documents cut, in {folder}"
    )
    print(message, file=sys.stderr, flush=True)
    return statistics


def _store_rows(corpus: Corpus, rule: RowRule, files: PlanFiles) -> tuple[RowStatistics, int]:
    """Plan the packed rows of one split and write them, one window in memory at a time.

    Returns their statistics, and the number of their spans.
    """
    statistics: list[RowStatistics] = []
    documents = 0
    spans_spec = files.spans(corpus.split)
    starts_spec = files.starts(corpus.split)
    spans = ArrayWriter(spans_spec, spans_spec.create([MAX_LENGTH, 2]))
    starts = ArrayWriter(starts_spec, starts_spec.create([MAX_LENGTH]))
    with track_progress("packing documents") as advance:
        advance("", 0, corpus.documents)
        starts.append(np.zeros(1, np.int64))
        for planned in plan_rows(corpus, rule):
            starts.append(spans.length + np.cumsum(planned.span_counts))
            spans.append(planned.spans)
            statistics.append(planned.statistics)
            documents += planned.statistics.documents
            advance("", documents, corpus.documents)
    spans.finish()
    starts.finish()
    return add_statistics(statistics), spans.length


def _count_tokens(corpora: Mapping[Split, Corpus]) -> dict[Split, int]:
    return {split: corpus.tokens for split, corpus in corpora.items()}
