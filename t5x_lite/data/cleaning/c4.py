"""C4's rules for web pages (Raffel et al. 2020, section 2.2)."""

import re
from collections import Counter
from functools import lru_cache
from pathlib import Path

from t5x_lite.data.cleaning.text_filter import FilteredText, TextFilter
from t5x_lite.errors import UserError
from t5x_lite.schema import Int, setting

TERMINAL_MARKS = (".", "!", "?", '"', "”")
"""A period, exclamation mark, question mark, or end quotation mark."""
POLICY_NOTICES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
CITATION = re.compile(r"\[(?:\d+|edit|citation needed)\]")
"""Citation markers of Wikipedia."""
SENTENCE_BREAK = re.compile(r"[.!?][\"”’')\]]*\s+")


class C4(TextFilter):
    """Remove lines that are not text, and drop pages with little text, code or placeholders.

    The rules on languages and on repeated spans of three sentences are not among them: see `language` and
    `c4_spans`.
    """

    min_line_words: Int = setting(5, "fewest words of a line that is retained", unit="words", ge=0)
    min_sentences: Int = setting(3, "fewest sentences of a page, among the lines that are retained", ge=0)
    bad_words: str = setting("", "file of words, one a line, that drop a page; C4 took LDNOOBW's list of bad words")

    def check(self) -> None:
        _bad_words.cache_clear()  # the file may have changed since another corpus was cleaned
        if self.bad_words:
            _bad_words(self.bad_words)

    def fingerprint(self) -> str:
        """Return the content of the list of bad words."""
        return "\n".join(_bad_word_list(self.bad_words)) if self.bad_words else ""

    def apply(self, text: str) -> FilteredText:
        """See `TextFilter`. Lines are removed, and citation markers from the others."""
        removals: Counter[str] = Counter()
        retained: list[str] = []
        for line in text.splitlines():
            rule = self._rule_against_line(line.strip())
            if rule:
                removals[rule] += 1
                continue
            plain_line, markers = CITATION.subn("", line.strip())
            if markers:
                removals["citation_markers"] += markers
            if plain_line:
                retained.append(plain_line)
        cleaned = "\n".join(retained)
        return FilteredText(cleaned, self._rule_against_page(text, retained), removals)

    def _rule_against_line(self, line: str) -> str:
        if not line:
            return ""
        plain_line = CITATION.sub("", line).rstrip()
        lower_line = plain_line.lower()
        if not plain_line.endswith(TERMINAL_MARKS):
            return "lines_without_terminal_mark"
        if len(plain_line.split()) < self.min_line_words:
            return "short_lines"
        if "javascript" in lower_line:
            return "javascript_lines"
        if any(notice in lower_line for notice in POLICY_NOTICES):
            return "policy_lines"
        return ""

    def _rule_against_page(self, text: str, lines: list[str]) -> str:
        lower_text = text.lower()
        if "lorem ipsum" in lower_text:
            return "lorem_ipsum"
        if "{" in text:
            return "curly_bracket"
        if self.bad_words and _bad_words(self.bad_words).search(lower_text):
            return "bad_words"
        sentences = sum(len(SENTENCE_BREAK.findall(line + "\n")) or 1 for line in lines)
        if sentences < self.min_sentences:
            return "sentence_count"
        return ""


@lru_cache(maxsize=1)
def _bad_words(path: str) -> re.Pattern[str]:
    words = _bad_word_list(path)
    alternatives = "|".join(map(re.escape, words))
    return re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)")


def _bad_word_list(path: str) -> list[str]:
    """Return the words of a file, in lower case.

    Raises:
        UserError: it cannot be read, or has no word.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.cleaning: c4.bad_words: {path} cannot be read: {error}") from None
    words = [line.strip().lower() for line in lines if line.strip()]
    if not words:
        raise UserError(f"data.cleaning: c4.bad_words: {path} has no words; write one a line")
    return words
