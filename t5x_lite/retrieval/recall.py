"""Recall@k: the share of queries with a relevant passage among the first k (Karpukhin et al. 2020, §5.1)."""

import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from t5x_lite.data.record_files import stream_record_file
from t5x_lite.errors import UserError
from t5x_lite.files import check_is_file
from t5x_lite.objectives.passages import Passage, read_passages
from t5x_lite.retrieval.collection import StoredPassage
from t5x_lite.retrieval.index import Index


@dataclass(frozen=True)
class JudgedQuery:
    """A query, and how a relevant passage is recognised: by any of these.

    Attributes:
        text: the query.
        ids: identifiers of relevant passages.
        positives: relevant passages.
        answers: texts, one of which a relevant passage contains.
        record: the query's record.
        location: its file and line.
    """

    text: str
    ids: frozenset[str] = frozenset()
    positives: frozenset[Passage] = frozenset()
    answers: tuple[str, ...] = ()
    record: Mapping[str, object] = field(default_factory=dict)
    location: str = ""

    def finds(self, stored: StoredPassage) -> bool:
        """Return whether a passage is relevant."""
        if stored.id in self.ids or stored.passage in self.positives:
            return True
        words = split_words(str(stored.passage))
        return any(contains_words(words, split_words(answer)) for answer in self.answers)


def read_queries(file: Path) -> list[JudgedQuery]:
    """Read queries: records with `query` or `question`, and `ids`, `positive`, `positive_ctxs` or `answers`.

    Raises:
        UserError: a file that cannot be read, without records, or a record without these; names the line.
    """
    check_is_file(file)
    queries = []
    for location, record in stream_record_file(str(file)):
        try:
            queries.append(replace(_read_query(record), location=location))
        except ValueError as error:
            raise UserError(f"{location}: {error}") from None
    if not queries:
        raise UserError(f"{file}: holds no query; each line is a JSON object with `query` and `positive`")
    return queries


def _read_query(record: object) -> JudgedQuery:
    if not isinstance(record, Mapping):
        raise ValueError(f"is {str(record)[:60]!r}; expected an object with `query`")
    text = record.get("query", record.get("question"))
    if not isinstance(text, str) or not text.strip():
        raise ValueError("has no text in `query` (or `question`)")
    ids = record.get("ids") or []
    answers = record.get("answers") or []
    if not isinstance(ids, list) or not isinstance(answers, list):
        raise ValueError("`ids` and `answers` are lists")
    positives = read_passages(record.get("positive", record.get("positive_ctxs")))
    if not ids and not answers and not positives:
        raise ValueError("names no relevant passage: give `positive`, `ids` or `answers`")
    return JudgedQuery(text, frozenset(map(str, ids)), frozenset(positives), tuple(map(str, answers)), record)


def check_judgements(queries: Sequence[JudgedQuery], index: Index) -> None:
    """Print a line about `ids`, and one about `positive` passages, that are not in an index. They are never found.

    Queries with `answers` are judged by the passages of any index.

    Raises:
        UserError: the index has none of them; names the first one's line.
    """
    queries = [query for query in queries if not query.answers]
    ids = {identifier for query in queries for identifier in query.ids}
    positives = {passage for query in queries for passage in query.positives}
    missing_ids, missing_positives = index.missing(ids, positives)
    places = []
    counts = []
    with_missing_ids = [query for query in queries if query.ids & missing_ids]
    if with_missing_ids:
        first = with_missing_ids[0]
        identifier = min(first.ids & missing_ids)
        places.append(f"{first.location}: id {identifier!r} is that of no passage of {index.folder}")
        counts.append(f"{len(missing_ids):,} of the {len(ids):,} ids")
    with_missing_positives = [query for query in queries if query.positives & missing_positives]
    if with_missing_positives:
        first = with_missing_positives[0]
        text = min(map(str, first.positives & missing_positives))
        places.append(f"{first.location}: the positive passage {text[:60]!r} is not in {index.folder}")
        counts.append(f"{len(missing_positives):,} of the {len(positives):,} positive passages")
    if places and (missing_ids, missing_positives) == (ids, positives):
        raise UserError(f"{places[0]}, nor is any other of the file; name the index of the passages that it judges")
    for place, count in zip(places, counts, strict=True):
        print(f"{place}; {count} of the file are not there and will not be found", file=sys.stderr, flush=True)


def contains_words(words: Sequence[str], answer_words: Sequence[str]) -> bool:
    """Return whether the words of an answer follow each other in a text (DPR's `has_answer`)."""
    size = len(answer_words)
    if not size:
        return False
    return any(words[start : start + size] == answer_words for start in range(len(words) - size + 1))


def split_words(text: str) -> list[str]:
    """Return the tokens that DPR compares: runs of letters, numbers and marks, and every other sign by itself.

    Source: DPR's code, `SimpleTokenizer`. Separators and control characters end a token.
    """
    words = [""]
    for character in unicodedata.normalize("NFD", text).lower():
        category = unicodedata.category(character)[0]
        if category in "LNM":
            words[-1] += character
        elif category in "ZC":
            words.append("")
        else:
            words += [character, ""]
    return [word for word in words if word]


def recall_at(is_relevant: Bool[np.ndarray, "queries k"], depths: Sequence[int]) -> dict[int, float]:
    """Return, for each depth, the share of queries with a relevant passage among so many.

    Args:
        is_relevant: for each query its passages, best first.
        depths: numbers of passages, at most `k`.
    """
    return {depth: float(is_relevant[:, :depth].any(axis=1).mean()) for depth in depths}
