"""The report of evaluation sets that overlap with a corpus, of all units together."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypedDict

from pydantic import BaseModel, NonNegativeInt

from t5x_lite.data.cleaning.decontaminate import Decontaminate, read_sets

DOCUMENTS = 5
"""Documents that are listed for each example."""
TEXT_CHARACTERS = 200
"""Characters of the beginnings of documents and examples that are listed."""


class Overlap(TypedDict):
    """A document that overlaps with examples: its file, the beginning of its text, and examples by evaluation set."""

    file: str
    text: str
    examples: Mapping[str, Sequence[int]]


class ContaminatedExample(BaseModel, strict=True, extra="forbid"):
    """An example that occurs in the corpus.

    Attributes:
        example: its number in the file, from 0.
        text: its beginning.
        documents: number of documents that overlap.
        first_documents: the first of them.
    """

    example: NonNegativeInt
    text: str
    documents: NonNegativeInt
    first_documents: list[dict[str, str]]


class ContaminationReport(BaseModel, strict=True, extra="forbid"):
    """An evaluation set.

    Attributes:
        examples: number of its examples.
        searched: those that are long enough to be looked for.
        contaminated: those of them that overlap with a document.
        share: contaminated over searched ones.
        overlaps: the contaminated examples.
    """

    examples: NonNegativeInt
    searched: NonNegativeInt
    contaminated: NonNegativeInt
    share: float
    overlaps: list[ContaminatedExample]


def report_contamination(settings: Decontaminate, overlaps: Sequence[Overlap]) -> dict[str, ContaminationReport]:
    """Return a report of each evaluation set, by its file.

    Args:
        settings: names the evaluation sets.
        overlaps: the documents that overlap, in the order of the corpus.
    """
    reports = {}
    for file, evaluation_set in read_sets(settings).items():
        documents: defaultdict[int, list[dict[str, str]]] = defaultdict(list)
        for overlap in overlaps:
            for number in overlap["examples"].get(file, ()):
                documents[number].append({"file": overlap["file"], "text": overlap["text"]})
        contaminated = []
        for number, its_documents in sorted(documents.items()):
            example = ContaminatedExample(
                example=number,
                text=evaluation_set.texts[number][:TEXT_CHARACTERS],
                documents=len(its_documents),
                first_documents=its_documents[:DOCUMENTS],
            )
            contaminated.append(example)
        reports[file] = ContaminationReport(
            examples=len(evaluation_set.texts),
            searched=evaluation_set.searched,
            contaminated=len(contaminated),
            share=len(contaminated) / max(evaluation_set.searched, 1),
            overlaps=contaminated,
        )
    return reports
