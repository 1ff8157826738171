"""Overlap of training documents with evaluation sets, by n-grams of words (Brown et al. 2020, appendix C).

As in lm-evaluation-harness, words are in lower case, without ASCII punctuation, and separated by white space. An
example overlaps with a document if any n-gram of the example occurs in it. An example with fewer words is an n-gram as
a whole, unless it is shorter than `min_words`: it would be found by chance.
"""

import string
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from t5x_lite.data.cleaning.text_filter import FilteredText, TextFilter
from t5x_lite.data.files import file_ending, hash_files, match_files
from t5x_lite.data.lines import located_lines
from t5x_lite.data.record_files import read_record_file
from t5x_lite.data.record_text import read_column
from t5x_lite.errors import UserError
from t5x_lite.schema import Int, Strings, setting

DELETED = str.maketrans("", "", string.punctuation)


class Decontaminate(TextFilter):
    """Report the examples of evaluation sets that occur in documents, and drop those documents or leave them."""

    files: Strings = setting(
        ...,
        "files of evaluation sets, or globs of them: TSV, CSV, JSONL, Parquet, or .txt with an example a line",
        min_length=1,
    )
    fields: Strings = setting((), "columns that are the text of an example, joined by spaces; by default all with text")
    columns: Strings = setting((), "names of the columns of TSV or CSV files without a header")
    ngram_words: Int = setting(13, "words of an n-gram", unit="words", ge=1, source="Brown et al. 2020, appendix C")
    min_words: Int = setting(
        8, "fewest words of an example that is looked for", unit="words", ge=1, source="Brown et al. 2020, appendix C"
    )
    action: Literal["report", "drop"] = setting("drop", "drop documents that overlap, or only report them")

    def check(self) -> None:
        read_sets.cache_clear()  # the files may have changed since another corpus was cleaned
        if not any(evaluation_set.ngrams for evaluation_set in read_sets(self).values()):
            files = ", ".join(self.files)
            raise UserError(f"data.cleaning: decontaminate: no example of {files} has {self.min_words} words")

    def fingerprint(self) -> str:
        """Return a hash of the evaluation sets."""
        return hash_files(self.files, "decontaminate.files in data.cleaning")

    def apply(self, text: str) -> FilteredText:
        overlaps = find_overlaps(self, text)
        if overlaps and self.action == "drop":
            return FilteredText(text, "evaluation_overlap", overlaps=overlaps)
        return FilteredText(text, overlaps=overlaps)


@dataclass(frozen=True)
class EvaluationSet:
    """The examples of a file.

    Attributes:
        texts: of the examples.
        ngrams: by their number of words, the numbers of the examples that have each n-gram.
        searched: number of examples that are long enough.
    """

    texts: list[str]
    ngrams: Mapping[int, Mapping[str, tuple[int, ...]]]
    searched: int


def find_overlaps(settings: Decontaminate, text: str) -> dict[str, tuple[int, ...]]:
    """Return, by the file of an evaluation set, the numbers of the examples that overlap with a text."""
    words = split_words(text)
    overlaps = {}
    for file, evaluation_set in read_sets(settings).items():
        examples: set[int] = set()
        for length, its_examples in evaluation_set.ngrams.items():
            for start in range(len(words) - length + 1):
                ngram = " ".join(words[start : start + length])
                if ngram in its_examples:
                    examples.update(its_examples[ngram])
        if examples:
            overlaps[file] = tuple(sorted(examples))
    return overlaps


def split_words(text: str) -> list[str]:
    """Return the words of a text as they are compared."""
    return text.lower().translate(DELETED).split()


@lru_cache(maxsize=2)
def read_sets(settings: Decontaminate) -> dict[str, EvaluationSet]:
    """Read the evaluation sets, by file.

    Raises:
        UserError: a file that cannot be read, a missing column, or an example without text; names file and line.
    """
    sets = {}
    for pattern in settings.files:
        for path in match_files(pattern, "decontaminate.files in data.cleaning"):
            sets[path] = _build_set(settings, list(_read_examples(settings, path)))
    return sets


def _build_set(settings: Decontaminate, texts: list[str]) -> EvaluationSet:
    ngrams: defaultdict[int, dict[str, tuple[int, ...]]] = defaultdict(dict)
    searched = 0
    for number, text in enumerate(texts):
        words = split_words(text)
        if len(words) < settings.min_words:
            continue
        searched += 1
        length = min(settings.ngram_words, len(words))
        for ngram in {" ".join(words[start : start + length]) for start in range(len(words) - length + 1)}:
            ngrams[length][ngram] = (*ngrams[length].get(ngram, ()), number)
    return EvaluationSet(texts, dict(ngrams), searched)


def _read_examples(settings: Decontaminate, path: str) -> Iterator[str]:
    """Yield the text of each example."""
    if file_ending(path) == ".txt":
        for _, line in located_lines(path, replaces_invalid=True):
            if line.strip():
                yield line
        return
    for location, record in read_record_file(path, settings.columns):
        if not isinstance(record, Mapping):
            raise UserError(f"{location}: is not a JSON object")
        names = settings.fields or tuple(record)
        remedy = "set decontaminate.fields in data.cleaning"
        values = [read_column(record, name, location, remedy) for name in names]
        texts = [value for value in values if isinstance(value, str)]
        if not texts:
            raise UserError(f"{location}: has no text in {', '.join(map(str, names))}")
        yield " ".join(texts)
