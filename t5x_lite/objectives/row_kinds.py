"""The kinds of rows that objectives make examples of, with the settings of `data` that each needs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class RowKind:
    """A kind of row.

    Attributes:
        content: what rows consist of, for messages.
        needs: for each setting of `data` that the rows depend on, the values that give such rows.
        has_second_sentence: a row is of one document, and comes with a row of another (`TokenRow.second_sentence`).
        keeps_ends: documents are not cut, and their parts are counted apart, because the objective shortens each part
            itself.
        separates_documents: the objective makes an example of each document of a row by itself.
        keeps_part_numbers: the numbers of parts have a meaning, which they keep where documents attend to each other.
    """

    content: str
    needs: Mapping[str, tuple[str | bool, ...]] = field(default_factory=dict)
    has_second_sentence: bool = False
    keeps_ends: bool = False
    separates_documents: bool = False
    keeps_part_numbers: bool = False


TOKENS = RowKind("any tokens")
DIVIDED_TEXTS = RowKind("texts that are divided into sentences", {"parts": ("line", "punctuation")})
DOCUMENTS = RowKind(
    "documents, each as one text whose end it marks",
    {"packing": ("documents", "none"), "end_of_document": (False,)},
    separates_documents=True,
)
SENTENCES = RowKind(
    "sentences", {"packing": ("sentences",), "parts": ("line", "punctuation")}, has_second_sentence=True
)
PAIRS = RowKind(
    "pairs of texts (two names in data.field)",
    {"parts": ("fields",), "packing": ("documents", "none")},
    keeps_ends=True,
    separates_documents=True,
)
SINGLE_PAIRS = replace(PAIRS, needs={**PAIRS.needs, "packing": ("none",)})
CONVERSATIONS = RowKind("conversations (data.field=messages)", {"parts": ("turns",)}, keeps_part_numbers=True)
