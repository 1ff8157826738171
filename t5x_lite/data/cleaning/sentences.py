"""Sentences of documents, with the hashes of their spans: sentences that follow each other."""

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
from jaxtyping import Bool, Int64, UInt64

from t5x_lite.data.cleaning.c4 import SENTENCE_BREAK

BREAK = re.compile(rf"(?>{SENTENCE_BREAK.pattern}|(?<!\s)[^\S\n]*\n\s*)(?![.!?](?:[\s.!?]|$))")
"""End of a sentence or of a line, with the white space that follows. The marks of `. . .` are not sentences."""
HASH_BYTES = 8


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text, each with the white space that follows; together they are the text."""
    first = len(text) - len(text.lstrip())
    ends = [match.end() for match in BREAK.finditer(text, first)]
    if text[first:] and ends[-1:] != [len(text)]:
        ends.append(len(text))
    return [text[start:end] for start, end in pairwise([0, *ends])]


def remove_sentences(text: str, numbers: Collection[int]) -> str:
    """Return a text without some of its sentences, and without the white space at the end if the last one goes."""
    pieces = split_sentences(text)
    left = "".join(piece for number, piece in enumerate(pieces) if number not in numbers)
    return left.rstrip() if len(pieces) - 1 in numbers else left


@dataclass(frozen=True)
class SentenceSpans:
    """The sentences of documents, one document after the other, and the hashes of their spans.

    Attributes:
        sentence_counts: number of sentences of each document.
        span_counts: number of its spans: one begins at each sentence but the last ones.
        hashes: of the spans.
        sentence_bytes: size in UTF-8 of each sentence.
        gap_bytes: size of the white space after each sentence, up to the next one.
    """

    sentence_counts: Int64[np.ndarray, "documents"]
    span_counts: Int64[np.ndarray, "documents"]
    hashes: UInt64[np.ndarray, "spans"]
    sentence_bytes: Int64[np.ndarray, "sentences"]
    gap_bytes: Int64[np.ndarray, "sentences"]

    @classmethod
    def of_text(cls, text: str, span_sentences: int) -> Self:
        """Return the sentences of one document. Hashes ignore capitals and white space."""
        pieces = split_sentences(text)
        plain = [" ".join(piece.split()).lower() for piece in pieces]
        span_count = max(len(pieces) - span_sentences + 1, 0)
        digests = [_digest(plain[start : start + span_sentences]) for start in range(span_count)]
        sentence_bytes = np.array([_size(piece.rstrip()) for piece in pieces], np.int64)
        return cls(
            sentence_counts=np.array([len(pieces)], np.int64),
            span_counts=np.array([span_count], np.int64),
            hashes=np.frombuffer(b"".join(digests), "<u8").astype(np.uint64),
            sentence_bytes=sentence_bytes,
            gap_bytes=np.array([_size(piece) for piece in pieces], np.int64) - sentence_bytes,
        )

    @classmethod
    def concatenate(cls, documents: Sequence[Self]) -> Self:
        """Return the sentences of several documents, or of none."""
        no_number = np.zeros(0, np.int64)
        no_hash = np.zeros(0, np.uint64)
        return cls(
            sentence_counts=np.concatenate([no_number, *(document.sentence_counts for document in documents)]),
            span_counts=np.concatenate([no_number, *(document.span_counts for document in documents)]),
            hashes=np.concatenate([no_hash, *(document.hashes for document in documents)]),
            sentence_bytes=np.concatenate([no_number, *(document.sentence_bytes for document in documents)]),
            gap_bytes=np.concatenate([no_number, *(document.gap_bytes for document in documents)]),
        )

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Return the sentences that `to_arrays` stored."""
        return cls(**{name: arrays[f"spans.{name}"] for name in cls.__dataclass_fields__})

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by the names under which a file has them."""
        return {f"spans.{name}": array for name, array in vars(self).items()}

    def select(self, is_selected: Bool[np.ndarray, "documents"]) -> Self:
        """Return the sentences of some of the documents."""
        of_sentences = np.repeat(is_selected, self.sentence_counts)
        of_spans = np.repeat(is_selected, self.span_counts)
        return type(self)(
            sentence_counts=self.sentence_counts[is_selected],
            span_counts=self.span_counts[is_selected],
            hashes=self.hashes[of_spans],
            sentence_bytes=self.sentence_bytes[of_sentences],
            gap_bytes=self.gap_bytes[of_sentences],
        )

    def removed_bytes(self, is_removed: Bool[np.ndarray, "sentences"]) -> Int64[np.ndarray, "documents"]:
        """Return the bytes by which `remove_sentences` makes each document smaller, of which a sentence is left."""
        sizes = np.where(is_removed, self.sentence_bytes + self.gap_bytes, 0)
        sums = np.concatenate([[0], np.cumsum(sizes)])
        ends = np.cumsum(self.sentence_counts)
        removed = sums[ends] - sums[ends - self.sentence_counts]
        last_left = np.maximum.accumulate(np.where(is_removed, 0, np.arange(len(is_removed))))
        loses_end = np.flatnonzero(self.sentence_counts)
        loses_end = loses_end[is_removed[ends[loses_end] - 1]]
        removed[loses_end] += self.gap_bytes[last_left[ends[loses_end] - 1]]
        return removed


def _digest(sentences: Sequence[str]) -> bytes:
    content = "\n".join(sentences).encode("utf-8", errors="replace")
    return hashlib.blake2b(content, digest_size=HASH_BYTES).digest()


def _size(text: str) -> int:
    return len(text.encode("utf-8", errors="replace"))
