"""Deduplicate the documents of all units of a source, and sum up what was dropped or removed and why."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, NonNegativeInt

from t5x_lite.data.cleaning.c4_spans import SpanIndex
from t5x_lite.data.cleaning.clean_unit import (
    ARRAYS_SUFFIX,
    COUNTS_SUFFIX,
    EXAMPLES,
    CleaningJob,
    arrays_file,
    counts_file,
    dropped_file,
    step_name,
)
from t5x_lite.data.cleaning.contamination import ContaminationReport, Overlap, report_contamination
from t5x_lite.data.cleaning.decontaminate import Decontaminate
from t5x_lite.data.cleaning.deduplication import DuplicateIndex
from t5x_lite.data.cleaning.sentences import SentenceSpans
from t5x_lite.data.corpus_files import CorpusFiles, load_arrays, save_arrays
from t5x_lite.errors import UserError, one_line
from t5x_lite.storage import delete_file, file_exists, join, list_names, read_bytes, write_bytes

REPORT_FILE = "cleaning.json"


class CleaningReport(BaseModel, strict=True, extra="forbid"):
    """The content of `cleaning.json`.

    Attributes:
        cleaning: the settings.
        documents: number of documents before.
        text_bytes: their size in UTF-8.
        retained_documents: number of documents after.
        retained_text_bytes: their size in UTF-8.
        dropped: documents by the rule that dropped them.
        removals: lines, markers or sentences that were removed from documents, by rule.
        examples: of the documents that a filter dropped.
        contamination: evaluation sets that were looked for, by their file.
    """

    cleaning: list[dict[str, dict[str, object]]]
    documents: NonNegativeInt = 0
    text_bytes: NonNegativeInt = 0
    retained_documents: NonNegativeInt = 0
    retained_text_bytes: NonNegativeInt = 0
    dropped: dict[str, NonNegativeInt] = {}
    removals: dict[str, NonNegativeInt] = {}
    examples: dict[str, list[dict[str, str]]] = {}
    contamination: dict[str, ContaminationReport] = {}


def read_report(folder: str) -> CleaningReport | None:
    """Return the report of a corpus folder; None if its text was not cleaned.

    Raises:
        UserError: it is damaged.
    """
    name = join(folder, REPORT_FILE)
    if not file_exists(name):
        return None
    try:
        return CleaningReport.model_validate(json.loads(read_bytes(name)))
    except (OSError, RecursionError, ValueError) as error:
        reason = one_line(error)
        raise UserError(f"{name}: is damaged: {reason}; delete {folder}, and the text is cleaned again") from None


def deduplicate_units(jobs: Sequence[CleaningJob], folder: str) -> None:
    """Drop the documents and remove the spans that repeat earlier ones, unit after unit.

    The report is written last, and marks the end.

    Raises:
        UserError: a file of the filters is damaged.
        OSError: a file that cannot be written.
    """
    settings = [{step_name(step): step.model_dump(mode="json")} for step in jobs[0].steps]
    report = CleaningReport(cleaning=settings)
    indexes = [(name, deduplication.build_index()) for name, deduplication in jobs[0].deduplications]
    span_indexes = [(name, deduplication.build_index()) for name, deduplication in jobs[0].span_deduplications]
    dropped: Counter[str] = Counter()
    removals: Counter[str] = Counter()
    overlaps: list[Overlap] = []
    for job in jobs:
        counts, unit = _read_filtered(job, folder)
        report.documents += counts["documents"]
        report.text_bytes += counts["text_bytes"]
        dropped.update(counts["dropped"])
        removals.update(counts["removals"])
        overlaps.extend(counts.get("overlaps", ()))
        for rule, examples in counts["examples"].items():
            report.examples[rule] = [*report.examples.get(rule, ()), *examples][:EXAMPLES]
        for name, index in indexes:
            dropped[f"{name}.duplicates"] += unit.drop_duplicates(name, index)
        for name, span_index in span_indexes:
            dropped[f"{name}.sentence_count"] += unit.remove_spans(span_index)
            removals[f"{name}.repeated_sentences"] += len(unit.removed_sentences)
        report.retained_documents += int(np.sum(~unit.is_dropped))
        report.retained_text_bytes += int(unit.text_bytes[~unit.is_dropped].sum())
        save_arrays(dropped_file(folder, job.name), unit.decisions())
    report.dropped = dict(+dropped)
    report.removals = dict(+removals)
    for step in jobs[0].steps:
        if isinstance(step, Decontaminate):
            report.contamination = report_contamination(step, overlaps)
    write_bytes(join(folder, REPORT_FILE), json.dumps(report.model_dump(mode="json"), indent=1) + "\n")


def _read_filtered(job: CleaningJob, folder: str) -> tuple[dict[str, Any], "_Unit"]:
    """Return the counts and the documents of a unit whose filters have run.

    Raises:
        UserError: a file is missing or damaged.
    """
    name = counts_file(folder, job.name)
    try:
        counts = json.loads(read_bytes(name))
        name = arrays_file(folder, job.name)
        return counts, _Unit(load_arrays(name))
    except (OSError, ValueError) as error:
        raise CorpusFiles(folder).damaged(name, str(error)) from None


class _Unit:
    """The documents of a unit.

    Attributes:
        is_dropped: documents that a filter or a kind of deduplication has dropped so far.
        text_bytes: size of the text of each document in UTF-8.
        removed_documents: the document of each sentence that is removed from a document that is not dropped.
        removed_sentences: the number of each such sentence in its document.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.is_dropped = arrays["is_dropped"].copy()
        self.text_bytes = arrays["text_bytes"].copy()
        self.removed_documents = np.zeros(0, np.int64)
        self.removed_sentences = np.zeros(0, np.int64)
        self._arrays = arrays
        self._after_filters = np.flatnonzero(~arrays["is_dropped"])

    def drop_duplicates(self, name: str, index: DuplicateIndex) -> int:
        """Drop documents that repeat an earlier one, and return their number.

        Args:
            name: the kind of deduplication, of whose fingerprints the unit has some for each document.
            index: the documents before.
        """
        is_left = ~self.is_dropped[self._after_filters]
        documents = self._after_filters[is_left]
        is_duplicate = index.add(self._arrays[name][is_left])
        self.is_dropped[documents[is_duplicate]] = True
        return int(is_duplicate.sum())

    def remove_spans(self, index: SpanIndex) -> int:
        """Remove spans that repeat an earlier one, and return the number of documents that this drops."""
        is_left = ~self.is_dropped[self._after_filters]
        documents = self._after_filters[is_left]
        spans = SentenceSpans.from_arrays(self._arrays).select(is_left)
        repeated = index.add(spans)
        self.is_dropped[documents[repeated.is_dropped]] = True
        is_removed = repeated.is_removed & ~np.repeat(repeated.is_dropped, spans.sentence_counts)
        self.text_bytes[documents] -= spans.removed_bytes(is_removed)
        numbers = np.arange(len(is_removed))
        numbers -= np.repeat(np.cumsum(spans.sentence_counts) - spans.sentence_counts, spans.sentence_counts)
        self.removed_documents = np.repeat(documents, spans.sentence_counts)[is_removed]
        self.removed_sentences = numbers[is_removed]
        return int(repeated.is_dropped.sum())

    def decisions(self) -> dict[str, np.ndarray]:
        """Return the arrays of the file by which the text that is left is read."""
        if not len(self.removed_sentences):
            return {"is_dropped": self.is_dropped}
        return {
            "is_dropped": self.is_dropped,
            "removed_documents": self.removed_documents,
            "removed_sentences": self.removed_sentences,
        }


def remove_intermediate_files(jobs: Sequence[CleaningJob], folder: str) -> None:
    """Remove what only `deduplicate_units` reads."""
    names = set(list_names(folder))
    for job in jobs:
        for name in (f"{job.name}{COUNTS_SUFFIX}", f"{job.name}{ARRAYS_SUFFIX}"):
            if name in names:
                delete_file(join(folder, name))
