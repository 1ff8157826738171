"""Deduplicate the documents of all units of a source, and sum up what was dropped and why."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from pydantic import BaseModel, NonNegativeInt

from t5x_lite.data.cleaning.clean_unit import (
    EXAMPLES,
    CleaningJob,
    arrays_file,
    counts_file,
    dropped_file,
    step_name,
)
from t5x_lite.data.cleaning.deduplication import DuplicateIndex
from t5x_lite.files import read_json_object, replace_file

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
        removals: lines or markers that were removed from retained documents, by rule.
        examples: of the documents that a filter dropped.
    """

    cleaning: list[dict[str, dict[str, object]]]
    documents: NonNegativeInt = 0
    text_bytes: NonNegativeInt = 0
    retained_documents: NonNegativeInt = 0
    retained_text_bytes: NonNegativeInt = 0
    dropped: dict[str, NonNegativeInt] = {}
    removals: dict[str, NonNegativeInt] = {}
    examples: dict[str, list[dict[str, str]]] = {}


def read_report(folder: Path) -> CleaningReport | None:
    """Return the report of a corpus folder; None if its text was not cleaned.

    Raises:
        UserError: it is damaged.
    """
    path = folder / REPORT_FILE
    if not path.exists():
        return None
    return CleaningReport.model_validate(read_json_object(path))


def deduplicate_units(jobs: Sequence[CleaningJob], folder: Path) -> None:
    """Drop the documents that repeat an earlier one, unit after unit, and write the report, which marks the end.

    Raises:
        OSError: a file that cannot be written.
    """
    settings = [{step_name(step): step.model_dump(mode="json")} for step in jobs[0].steps]
    report = CleaningReport(cleaning=settings)
    indexes = [(name, deduplication.build_index()) for name, deduplication in jobs[0].deduplications]
    dropped: Counter[str] = Counter()
    removals: Counter[str] = Counter()
    for job in jobs:
        counts = read_json_object(counts_file(folder, job.name))
        report.documents += counts["documents"]
        report.text_bytes += counts["text_bytes"]
        dropped.update(counts["dropped"])
        removals.update(counts["removals"])
        for rule, examples in counts["examples"].items():
            report.examples[rule] = [*report.examples.get(rule, ()), *examples][:EXAMPLES]
        with np.load(arrays_file(folder, job.name), allow_pickle=False) as arrays:
            is_dropped = _find_duplicates(dict(arrays), indexes, dropped)
            report.retained_documents += int(np.sum(~is_dropped))
            report.retained_text_bytes += int(arrays["text_bytes"][~is_dropped].sum())
        np.save(dropped_file(folder, job.name), is_dropped)
    report.dropped = dict(dropped)
    report.removals = dict(removals)
    replace_file(folder / REPORT_FILE, json.dumps(report.model_dump(mode="json"), indent=1) + "\n")


def remove_intermediate_files(jobs: Sequence[CleaningJob], folder: Path) -> None:
    """Remove what only `deduplicate_units` reads."""
    for job in jobs:
        counts_file(folder, job.name).unlink(missing_ok=True)
        arrays_file(folder, job.name).unlink(missing_ok=True)


def _find_duplicates(
    arrays: dict[str, np.ndarray], indexes: Sequence[tuple[str, DuplicateIndex]], dropped: Counter[str]
) -> Bool[np.ndarray, "documents"]:
    """Return which documents of a unit are dropped, by a filter or as duplicates, and count the latter."""
    is_dropped = arrays["is_dropped"].copy()
    after_filters = np.flatnonzero(~is_dropped)
    for name, index in indexes:
        is_left = ~is_dropped[after_filters]
        documents = after_filters[is_left]
        is_duplicate = index.add(arrays[name][is_left])
        is_dropped[documents[is_duplicate]] = True
        if is_duplicate.any():
            dropped[f"{name}.duplicates"] += int(is_duplicate.sum())
    return is_dropped
