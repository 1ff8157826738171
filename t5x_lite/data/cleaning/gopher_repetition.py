"""Gopher's rules against repetition (Rae et al. 2021, appendix A.1.1, "Repetition removal", table A1)."""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool

from t5x_lite.data.cleaning.text_filter import FilteredText, TextFilter
from t5x_lite.schema import setting

TOP_NGRAM_SHARES = {2: 0.20, 3: 0.18, 4: 0.16}
"""Largest share of characters in the most frequent n-gram of words, if that occurs more than once."""
REPEATED_NGRAM_SHARES = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
"""Largest share of characters in n-grams of words that occur more than once. Overlaps are counted once."""


class GopherRepetition(TextFilter):
    """Drop documents that repeat lines, paragraphs or n-grams of words. Characters of n-grams are those of words."""

    max_repeated_lines: float = setting(0.3, "largest share of lines that repeat an earlier one", ge=0, le=1)
    max_repeated_paragraphs: float = setting(0.3, "the same of paragraphs", ge=0, le=1)
    max_repeated_line_characters: float = setting(0.2, "largest share of characters in such lines", ge=0, le=1)
    max_repeated_paragraph_characters: float = setting(0.2, "the same of paragraphs", ge=0, le=1)
    ngrams: bool = setting(True, "apply the limits of n-grams of 2 to 10 words", source="Rae et al. 2021, table A1")

    def apply(self, text: str) -> FilteredText:
        return FilteredText(text, self._broken_rule(text))

    def _broken_rule(self, text: str) -> str:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        paragraphs = [paragraph.strip() for paragraph in text.split("\n\n") if paragraph.strip()]
        if _exceeds(lines, self.max_repeated_lines, self.max_repeated_line_characters):
            return "repeated_lines"
        if _exceeds(paragraphs, self.max_repeated_paragraphs, self.max_repeated_paragraph_characters):
            return "repeated_paragraphs"
        if self.ngrams:
            return next(_exceeded_ngrams(text.split()), "")
        return ""


def _exceeds(pieces: Sequence[str], max_share: float, max_character_share: float) -> bool:
    """Return whether the pieces that repeat an earlier one are too many, or too much of the text."""
    different = set(pieces)
    repeated = len(pieces) - len(different)
    characters = sum(map(len, pieces))
    repeated_characters = characters - sum(map(len, different))
    return repeated > max_share * len(pieces) or repeated_characters > max_character_share * characters


def _exceeded_ngrams(words: Sequence[str]) -> Iterator[str]:
    """Yield the rule of each length of n-grams whose limit the words exceed."""
    numbers: dict[str, int] = {}
    words_as_numbers = np.array([numbers.setdefault(word, len(numbers)) for word in words], np.int64)
    word_lengths = np.array([len(word) for word in words], np.int64)
    total = word_lengths.sum()
    ngrams = words_as_numbers
    for size in range(2, 1 + max(REPEATED_NGRAM_SHARES)):
        if len(words) <= size:
            return
        # An n-gram is the (n-1)-gram that it begins with, and a word.
        pairs = ngrams[:-1] * len(numbers) + words_as_numbers[size - 1 :]
        _, ngrams, counts = np.unique(pairs, return_inverse=True, return_counts=True)
        if counts.max() == 1:
            return
        if size in TOP_NGRAM_SHARES:
            covered = _cover(ngrams == counts.argmax(), size)
            limit = TOP_NGRAM_SHARES[size]
            rule = f"top_{size}_gram"
        else:
            covered = _cover(counts[ngrams] > 1, size)
            limit = REPEATED_NGRAM_SHARES[size]
            rule = f"repeated_{size}_grams"
        if word_lengths[covered].sum() > limit * total:
            yield rule


def _cover(begins: Bool[np.ndarray, "ngrams"], size: int) -> Bool[np.ndarray, "words"]:
    """Return which words are in the n-grams that begin at the given words."""
    changes = np.zeros(len(begins) + size, np.int64)
    places = np.flatnonzero(begins)
    changes[places] += 1
    changes[places + size] -= 1
    return np.cumsum(changes)[:-1] > 0
