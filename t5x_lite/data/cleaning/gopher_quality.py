"""Gopher's rules of quality (Rae et al. 2021, appendix A.1.1, "Quality filtering")."""

from collections.abc import Iterator, Sequence

from t5x_lite.data.cleaning.text_filter import FilteredText, TextFilter
from t5x_lite.schema import Int, Strings, setting

ELLIPSES = ("...", "…")
BULLETS = ("•", "‣", "◦", "⁃", "∙", "●", "○", "■", "▪", "-", "–", "*", "·")
"""Characters that begin the items of a list. The paper does not name them."""
PUNCTUATION = ".,;:!?\"'()[]{}“”‘’«»…"


class GopherQuality(TextFilter):
    """Drop documents that Gopher's rules of quality refuse. Words are what white space separates."""

    min_words: Int = setting(50, "fewest words of a document", unit="words", ge=0)
    max_words: Int = setting(100_000, "most words of a document", unit="words", ge=1)
    min_mean_word_length: float = setting(3.0, "smallest mean length of a word", unit="characters", ge=0)
    max_mean_word_length: float = setting(10.0, "largest mean length of a word", unit="characters", gt=0)
    max_symbols_per_word: float = setting(0.1, "most hash signs, and most ellipses, per word", ge=0)
    max_bullet_lines: float = setting(0.9, "largest share of lines that begin with a bullet", ge=0, le=1)
    max_ellipsis_lines: float = setting(0.3, "largest share of lines that end with an ellipsis", ge=0, le=1)
    min_alphabetic_words: float = setting(0.8, "smallest share of words with an alphabetic character", ge=0, le=1)
    min_stop_words: Int = setting(2, "fewest different stop words; 0 for languages other than English", ge=0)
    stop_words: Strings = setting(("the", "be", "to", "of", "and", "that", "have", "with"), "the stop words")

    def problems(self) -> Iterator[str]:
        if self.min_words > self.max_words:
            yield f"min_words is {self.min_words}, but max_words {self.max_words}"
        if self.min_mean_word_length > self.max_mean_word_length:
            yield f"min_mean_word_length is {self.min_mean_word_length}, but the largest {self.max_mean_word_length}"
        if self.min_stop_words > len(set(self.stop_words)):
            yield f"min_stop_words is {self.min_stop_words}, but stop_words has {len(set(self.stop_words))}"

    def apply(self, text: str) -> FilteredText:
        words = text.split()
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        rule = self._broken_rule_of_words(words) or self._broken_rule_of_signs(text, words, lines)
        return FilteredText(text, rule)

    def _broken_rule_of_words(self, words: Sequence[str]) -> str:
        if not self.min_words <= len(words) <= self.max_words:
            return "word_count"
        if not words:
            return ""
        mean_length = sum(map(len, words)) / len(words)
        if not self.min_mean_word_length <= mean_length <= self.max_mean_word_length:
            return "mean_word_length"
        alphabetic = sum(any(map(str.isalpha, word)) for word in words)
        if alphabetic < self.min_alphabetic_words * len(words):
            return "alphabetic_words"
        plain_words = {word.strip(PUNCTUATION).lower() for word in words}
        if len(plain_words.intersection(self.stop_words)) < self.min_stop_words:
            return "stop_words"
        return ""

    def _broken_rule_of_signs(self, text: str, words: Sequence[str], lines: Sequence[str]) -> str:
        ellipses = sum(text.count(ellipsis) for ellipsis in ELLIPSES)
        if max(text.count("#"), ellipses) > self.max_symbols_per_word * len(words):
            return "symbols_per_word"
        if sum(line.startswith(BULLETS) for line in lines) > self.max_bullet_lines * len(lines):
            return "bullet_lines"
        if sum(line.endswith(ELLIPSES) for line in lines) > self.max_ellipsis_lines * len(lines):
            return "ellipsis_lines"
        return ""
