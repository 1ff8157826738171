"""Filter the documents of one unit of text, and read what is left of them after deduplication.

`clean_unit` writes into the corpus folder, for a unit:

* `UNIT.filtered.npz`: which documents a filter drops; the bytes of each document's text after the filters; and, for
  each kind of deduplication, the fingerprints of the documents that are left, or of their sentences;
* `UNIT.filtered.json`: counts of the rules, written last.

`deduplicate.deduplicate_units` replaces them by `UNIT.dropped.npz`: which documents are dropped, for whatever reason,
and, if there are some, which sentences of the others are removed.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from t5x_lite.data import unit_readers
from t5x_lite.data.cleaning import CLEANING
from t5x_lite.data.cleaning.c4_spans import C4Spans
from t5x_lite.data.cleaning.contamination import TEXT_CHARACTERS, Overlap
from t5x_lite.data.cleaning.deduplication import Deduplication
from t5x_lite.data.cleaning.sentences import SentenceSpans, remove_sentences
from t5x_lite.data.cleaning.text_filter import FilteredText, TextFilter
from t5x_lite.data.corpus_files import CorpusFiles, load_arrays, save_arrays
from t5x_lite.data.sources import Unit
from t5x_lite.errors import UserError
from t5x_lite.schema import component_name
from t5x_lite.storage import join, write_bytes

VERSION = 1
"""Version of the rules. It is part of the names of corpora, so text is cleaned again when they change."""
COUNTS_SUFFIX = ".filtered.json"
ARRAYS_SUFFIX = ".filtered.npz"
CleaningStep = TextFilter | Deduplication | C4Spans
EXAMPLES = 3
"""Documents that the report shows for each rule."""
EXAMPLE_CHARACTERS = 200


@dataclass(frozen=True)
class CleaningJob:
    """A unit of text to clean.

    Attributes:
        name: the name of its files in the corpus folder.
        unit: the text.
        steps: filters, then kinds of deduplication, of which the one of spans is last.
    """

    name: str
    unit: Unit
    steps: tuple[CleaningStep, ...]

    @property
    def filters(self) -> list[tuple[str, TextFilter]]:
        """The filters with their names."""
        return [(step_name(step), step) for step in self.steps if isinstance(step, TextFilter)]

    @property
    def deduplications(self) -> list[tuple[str, Deduplication]]:
        """The kinds of deduplication that drop documents, with their names."""
        return [(step_name(step), step) for step in self.steps if isinstance(step, Deduplication)]

    @property
    def span_deduplications(self) -> list[tuple[str, C4Spans]]:
        """The kinds of deduplication that remove spans of sentences, with their names: one at most."""
        return [(step_name(step), step) for step in self.steps if isinstance(step, C4Spans)]


def describe_steps(steps: Sequence[CleaningStep]) -> str:
    """Return a text that changes if their result may change: their settings, and the files that filters read."""
    settings = [f"{step_name(step)} {step.model_dump_json()}" for step in steps]
    fingerprints = [step.fingerprint() for step in steps if isinstance(step, TextFilter)]
    return f"{VERSION} {settings} {fingerprints}"


def step_name(step: CleaningStep) -> str:
    """Return the name of a step in `data.cleaning`."""
    return component_name(CLEANING, step)


def counts_file(folder: str, name: str) -> str:
    """Return the file with the counts of a unit, which exists if its filters have run."""
    return join(folder, f"{name}{COUNTS_SUFFIX}")


def arrays_file(folder: str, name: str) -> str:
    """Return the file with the arrays of a unit whose filters have run."""
    return join(folder, f"{name}{ARRAYS_SUFFIX}")


def dropped_file(folder: str, name: str) -> str:
    """Return the file that says which documents of a unit are dropped."""
    return join(folder, f"{name}.dropped.npz")


def clean_unit(job: CleaningJob, folder: str) -> None:
    """Run the filters on a unit, and write their decisions, counts and the fingerprints of what is left.

    Raises:
        UserError: text that cannot be read.
        OSError: a file that cannot be written.
    """
    counts = _UnitCounts()
    is_dropped: list[bool] = []
    text_bytes: list[int] = []
    fingerprints: list[list[np.ndarray]] = [[] for _ in job.deduplications]
    spans: list[SentenceSpans] = []
    for path, text in unit_readers.documents(job.unit):
        counts.documents += 1
        counts.text_bytes += len(text.encode("utf-8", errors="replace"))
        filtered = _filter_text(text, job.filters, counts)
        if filtered.overlaps:
            counts.overlap(path, text, filtered.overlaps)
        is_dropped.append(bool(filtered.dropped_by))
        text_bytes.append(len(filtered.text.encode("utf-8", errors="replace")))
        if filtered.dropped_by:
            counts.drop(filtered.dropped_by, path, text)
            continue
        for rows, (_, deduplication) in zip(fingerprints, job.deduplications, strict=True):
            rows.append(deduplication.fingerprint(filtered.text))
        spans.extend(deduplication.fingerprint(filtered.text) for _, deduplication in job.span_deduplications)
    arrays: dict[str, np.ndarray] = {
        "is_dropped": np.array(is_dropped, np.bool_),
        "text_bytes": np.array(text_bytes, np.int64),
    }
    for rows, (name, deduplication) in zip(fingerprints, job.deduplications, strict=True):
        arrays[name] = np.array(rows, np.uint32).reshape(-1, deduplication.numbers)
    if job.span_deduplications:
        arrays.update(SentenceSpans.concatenate(spans).to_arrays())
    save_arrays(arrays_file(folder, job.name), arrays)
    write_bytes(counts_file(folder, job.name), json.dumps(vars(counts)))


class _UnitCounts:
    """Counts of the filters of one unit; its attributes are the content of `UNIT.filtered.json`."""

    def __init__(self) -> None:
        self.documents = 0
        self.text_bytes = 0
        self.dropped: Counter[str] = Counter()
        self.removals: Counter[str] = Counter()
        self.examples: dict[str, list[dict[str, str]]] = {}
        self.overlaps: list[Overlap] = []

    def drop(self, rule: str, path: str, text: str) -> None:
        """Count a document that a rule drops."""
        self.dropped[rule] += 1
        examples = self.examples.setdefault(rule, [])
        if len(examples) < EXAMPLES:
            examples.append({"file": path, "text": text[:EXAMPLE_CHARACTERS]})

    def overlap(self, path: str, text: str, examples: Mapping[str, Sequence[int]]) -> None:
        """Write down that examples of evaluation sets occur in a document."""
        self.overlaps.append({"file": path, "text": text[:TEXT_CHARACTERS], "examples": examples})


def _filter_text(text: str, filters: Sequence[tuple[str, TextFilter]], counts: _UnitCounts) -> FilteredText:
    """Apply filters up to the first that drops the document; the rule begins with the filter's name."""
    if not text.strip():
        return FilteredText(text, "empty")
    overlaps: dict[str, Sequence[int]] = {}
    for name, text_filter in filters:
        filtered = text_filter.apply(text)
        overlaps.update(filtered.overlaps)
        if filtered.dropped_by:
            return FilteredText(text, f"{name}.{filtered.dropped_by}", overlaps=overlaps)
        for rule, number in filtered.removals.items():
            counts.removals[f"{name}.{rule}"] += number
        text = filtered.text
    return FilteredText(text, overlaps=overlaps)


def cleaned_documents(job: CleaningJob, folder: str) -> Iterator[tuple[str, str]]:
    """Yield the file and the text of each document of a unit that is not dropped, in order.

    Raises:
        UserError: the text has changed since the filters ran, or the file of the dropped documents is damaged.
    """
    name = dropped_file(folder, job.name)
    try:
        arrays = load_arrays(name)
    except ValueError as error:
        raise CorpusFiles(folder).damaged(name, str(error)) from None
    is_dropped = arrays["is_dropped"]
    removed = _group_by_document(arrays)
    documents = 0
    for path, document in unit_readers.documents(job.unit):
        if documents < len(is_dropped) and not is_dropped[documents]:
            text = document
            for _, text_filter in job.filters:
                text = text_filter.apply(text).text
            if documents in removed:
                text = remove_sentences(text, removed[documents])
            yield path, text
        documents += 1
    if documents != len(is_dropped):
        raise UserError(f"{job.unit.path}: has changed while it was cleaned; run the same command again")


def _group_by_document(arrays: Mapping[str, np.ndarray]) -> dict[int, set[int]]:
    """Return the numbers of the removed sentences by the number of their document."""
    removed: dict[int, set[int]] = {}
    if "removed_sentences" not in arrays:
        return removed
    pairs = zip(arrays["removed_documents"].tolist(), arrays["removed_sentences"].tolist(), strict=True)
    for document, sentence in pairs:
        removed.setdefault(document, set()).add(sentence)
    return removed
