"""The counts of a finished token corpus, in `corpus.json`."""

import json

from pydantic import BaseModel, NonNegativeInt, ValidationError, model_validator

from t5x_lite.data.corpus_files import CorpusFiles, Split, TokenType
from t5x_lite.storage import read_bytes


class SplitCounts(BaseModel, strict=True, extra="forbid"):
    """Counts of one split.

    Attributes:
        documents: number of documents.
        tokens: number of tokens.
        text_bytes: size of the text in UTF-8, in bytes.
        replaced: documents with bytes that were not UTF-8.
        parts: number of sentences or fields; None if documents have no parts.
        unit_tokens: tokens of each unit.
        hash: SHA-256 of the tokens and the lengths of documents and parts, unit by unit.
    """

    documents: NonNegativeInt
    tokens: NonNegativeInt
    text_bytes: NonNegativeInt
    replaced: NonNegativeInt
    parts: NonNegativeInt | None
    unit_tokens: list[NonNegativeInt]
    hash: str

    @model_validator(mode="after")
    def _check_sum(self) -> "SplitCounts":
        if sum(self.unit_tokens) != self.tokens:
            raise ValueError("the units have another number of tokens")
        return self


class CorpusSummary(BaseModel, strict=True, extra="forbid"):
    """Content of `corpus.json`: the type of the token ids, and the counts of each split."""

    token_type: TokenType
    splits: dict[Split, SplitCounts]


def read_summary(files: CorpusFiles) -> CorpusSummary:
    """Return the content of `corpus.json`.

    Raises:
        UserError: it is missing or damaged, or its store cannot be read.
    """
    try:
        return CorpusSummary.model_validate(json.loads(read_bytes(files.summary)))
    except (OSError, RecursionError, ValueError, ValidationError):
        raise files.damaged(files.summary, "it is not the summary of a corpus") from None
