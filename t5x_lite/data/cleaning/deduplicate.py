"""Deduplicate the documents of all units of a source, and sum up what was dropped and why."""

import json
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool
from pydantic import BaseModel, NonNegativeInt

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
from t5x_lite.data.cleaning.deduplication import DuplicateIndex
from t5x_lite.data.corpus_files import load_arrays, save_arrays
from t5x_lite.errors import UserError
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
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{name}: is damaged: {reason}; delete {folder}, and the text is cleaned again") from None


def deduplicate_units(jobs: Sequence[CleaningJob], folder: str) -> None:
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
        counts = json.loads(read_bytes(counts_file(folder, job.name)))
        report.documents += counts["documents"]
        report.text_bytes += counts["text_bytes"]
        dropped.update(counts["dropped"])
        removals.update(counts["removals"])
        for rule, examples in counts["examples"].items():
            report.examples[rule] = [*report.examples.get(rule, ()), *examples][:EXAMPLES]
        arrays = load_arrays(arrays_file(folder, job.name))
        is_dropped = _find_duplicates(arrays, indexes, dropped)
        report.retained_documents += int(np.sum(~is_dropped))
        report.retained_text_bytes += int(arrays["text_bytes"][~is_dropped].sum())
        save_arrays(dropped_file(folder, job.name), {"is_dropped": is_dropped})
    report.dropped = dict(dropped)
    report.removals = dict(removals)
    write_bytes(join(folder, REPORT_FILE), json.dumps(report.model_dump(mode="json"), indent=1) + "\n")


def remove_intermediate_files(jobs: Sequence[CleaningJob], folder: str) -> None:
    """Remove what only `deduplicate_units` reads."""
    names = set(list_names(folder))
    for job in jobs:
        for name in (f"{job.name}{COUNTS_SUFFIX}", f"{job.name}{ARRAYS_SUFFIX}"):
            if name in names:
                delete_file(join(folder, name))


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
