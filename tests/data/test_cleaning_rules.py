"""Rules for single documents, checked with documents written by hand from the papers' sentences."""

from pathlib import Path

import numpy as np
import pytest

from t5x_lite.data.cleaning.c4 import C4
from t5x_lite.data.cleaning.gopher_quality import GopherQuality
from t5x_lite.data.cleaning.gopher_repetition import REPEATED_NGRAM_SHARES, TOP_NGRAM_SHARES, GopherRepetition
from t5x_lite.data.cleaning.language import Language
from t5x_lite.data.config import SourceConfig
from t5x_lite.data.sources import units
from t5x_lite.data.unit_readers import documents
from t5x_lite.errors import UserError

LINE = "The dog has seen a brown fox."
PAGE = "\n".join([LINE, "It runs to the old river again!", "Why have they all gone there?"])


def plain_words(count: int) -> str:
    """Return words of five letters, two of which are stop words of Gopher's list."""
    return " ".join(["the", "that", *["horse"] * (count - 2)])


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        # "contain between 50 and 100,000 words"
        (plain_words(49), "word_count"),
        (plain_words(50), ""),
        (plain_words(100_000), ""),
        (plain_words(100_001), "word_count"),
        # "mean word length is outside the range of 3 to 10 characters"
        (" ".join(["the", "that", *["a"] * 58]), "mean_word_length"),
        (" ".join(["the", "that", *["extraordinary"] * 58]), "mean_word_length"),
        # "symbol-to-word ratio greater than 0.1 for either the hash symbol or the ellipsis"
        (plain_words(54) + " #horse" * 6, ""),
        (plain_words(53) + " #horse" * 7, "symbols_per_word"),
        (plain_words(53) + " horse..." * 6 + " horse", ""),
        (plain_words(52) + " horse…" * 7 + " horse", "symbols_per_word"),
        (plain_words(53) + " #horse..." * 6 + " horse", ""),
        # "more than 90% of lines starting with a bullet point"
        ("\n".join([plain_words(50), *["- horse to horse"] * 9]), ""),
        ("\n".join([plain_words(50), *["• horse to horse"] * 10]), "bullet_lines"),
        # "or more than 30% ending with an ellipsis"
        ("\n".join([*[plain_words(10)] * 7, *["horse to horse..."] * 3]), ""),
        ("\n".join([*[plain_words(20)] * 6, *["horse to horse..."] * 3]), "ellipsis_lines"),
        # "80% of words in a document contain at least one alphabetic character"
        (plain_words(40) + " 12345" * 10, ""),
        (plain_words(40) + " 12345" * 11, "alphabetic_words"),
        # "a stop word filter, to remove documents that do not contain at least two of the following English words"
        ("horse " * 60 + "the the the", "stop_words"),
        ("horse " * 60 + "The (with)", ""),
    ],
)
def test_gopher_rules_of_quality(text: str, rule: str) -> None:
    assert GopherQuality().apply(text).dropped_by == rule
    assert GopherQuality().apply(text).text == text


def different_words(count: int, first: int = 0) -> list[str]:
    return [f"w{number:04d}" for number in range(first, first + count)]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        # Table A1: duplicate line fraction 0.30, duplicate line character fraction 0.20
        ("\n".join([*different_words(7), *["w0000"] * 3]), "repeated_lines"),
        ("\n".join([*[f"{word} and a long line" for word in different_words(7)], *["w0000"] * 3]), ""),
        ("\n".join([*[f"{word} and a long line" for word in different_words(7)], *["w0000"] * 5]), "repeated_lines"),
        ("\n".join([*different_words(9), "one very long line here", "one very long line here"]), "repeated_lines"),
        # Duplicate paragraph fraction 0.30, duplicate paragraph character fraction 0.20
        ("\n\n".join(["\n".join(different_words(20)), *different_words(3, 20), *["w0020"] * 2]), "repeated_paragraphs"),
        ("\n\n".join(["\n".join(different_words(20)), *different_words(4, 20), *["w0020"] * 2]), ""),
    ],
)
def test_gopher_rules_against_repeated_lines_and_paragraphs(text: str, rule: str) -> None:
    assert GopherRepetition(ngrams=False).apply(text).dropped_by == rule


def brute_force_rule(words: list[str]) -> str:
    """Return the rule of n-grams that words of one length break, by the sentences of the paper."""
    for size in range(2, 11):
        ngrams = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
        counts = {ngram: ngrams.count(ngram) for ngram in ngrams}
        most = max(counts.values(), default=1)
        if most == 1:
            continue
        if size in TOP_NGRAM_SHARES:
            shares = []
            for top in (ngram for ngram in counts if counts[ngram] == most):
                covered = {start + k for start, ngram in enumerate(ngrams) if ngram == top for k in range(size)}
                shares.append(len(covered) / len(words))
            if all(share > TOP_NGRAM_SHARES[size] for share in shares):
                return f"top_{size}_gram"
            if any(share > TOP_NGRAM_SHARES[size] for share in shares):
                return "ambiguous"  # several n-grams are the most frequent, and overlap with themselves differently
        else:
            covered = {start + k for start, ngram in enumerate(ngrams) if counts[ngram] > 1 for k in range(size)}
            if len(covered) / len(words) > REPEATED_NGRAM_SHARES[size]:
                return f"repeated_{size}_grams"
    return ""


def test_shares_of_ngrams_are_those_of_a_count_by_hand() -> None:
    assert [TOP_NGRAM_SHARES[n] for n in (2, 3, 4)] == [0.20, 0.18, 0.16]
    assert [REPEATED_NGRAM_SHARES[n] for n in range(5, 11)] == [0.15, 0.14, 0.13, 0.12, 0.11, 0.10]
    rng = np.random.default_rng(0)
    rules = set()
    for _ in range(120):
        words = [f"w{number:02d}" for number in rng.integers(0, 90, rng.integers(20, 90))]
        size = int(rng.integers(2, 11))
        piece = [f"x{k:02d}" for k in range(size)]
        for _ in range(int(rng.integers(0, 9))):
            place = int(rng.integers(0, len(words)))
            words[place:place] = piece
        rule = brute_force_rule(words)
        if rule != "ambiguous":
            # Lines and paragraphs are one here.
            assert GopherRepetition().apply(" ".join(words)).dropped_by == rule
            rules.add(rule)
    assert "" in rules
    assert any(rule.startswith("top_2") for rule in rules)
    assert any(rule.startswith("repeated_") for rule in rules)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (PAGE, ""),
        # "We removed any page that had the phrase 'lorem ipsum'", and pages that contained a curly bracket
        (PAGE + "\nHere is some Lorem Ipsum for the page.", "lorem_ipsum"),
        (PAGE + "\nHere is some code for you: { }.", "curly_bracket"),
        (PAGE + "\n{", "curly_bracket"),
        # "We discarded any page with fewer than 3 sentences"
        ("\n".join([LINE, LINE]), "sentence_count"),
        ("It ran to the river. Then it slept. Then it woke.", ""),
        ("It ran to the river. Then it slept.", "sentence_count"),
        ("", "sentence_count"),
    ],
)
def test_c4_drops_pages(text: str, rule: str) -> None:
    assert C4().apply(text).dropped_by == rule


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        # "We only retained lines that ended in a terminal punctuation mark (i.e. a period, exclamation mark, question
        # mark, or end quotation mark)"
        ("Home | About us | Products and services", "lines_without_terminal_mark"),
        ("The dog said to us: “I have seen it”", ""),
        ('The dog said to us: "I have seen it"', ""),
        # "and only retained lines that contained at least 5 words"
        ("Read it all now.", "short_lines"),
        # "any line with the word Javascript"
        ("Please turn on JavaScript to see this page.", "javascript_lines"),
        # "any lines containing the strings 'terms of use', 'privacy policy', …"
        ("By reading on you accept our Terms of Use.", "policy_lines"),
        ("See the privacy policy of this fine site.", "policy_lines"),
        ("This site uses cookies to know you well.", "policy_lines"),
    ],
)
def test_c4_removes_lines(line: str, rule: str) -> None:
    cleaned = C4().apply(f"{PAGE}\n\n{line}\n")
    if rule:
        assert cleaned.text == PAGE
        assert cleaned.removals == {rule: 1}
    else:
        assert cleaned.text == f"{PAGE}\n{line}"
        assert not cleaned.removals
    assert not cleaned.dropped_by


def test_c4_removes_citation_markers() -> None:
    text = PAGE.replace("fox.", "fox.[12]").replace("old", "old[citation needed]")
    cleaned = C4().apply(text)
    assert cleaned.text == PAGE
    assert cleaned.removals == {"citation_markers": 2}


def test_c4_drops_pages_with_words_of_a_list(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("darn\nbad egg\n")
    rules = C4(bad_words=str(tmp_path / "words.txt"))
    assert rules.apply(f"{PAGE}\nIt is a DARN shame to see.").dropped_by == "bad_words"
    assert rules.apply(f"{PAGE}\nIt is a bad egg to see.").dropped_by == "bad_words"
    assert not rules.apply(f"{PAGE}\nIt is darning socks to see.").dropped_by
    before = rules.fingerprint()
    (tmp_path / "words.txt").write_text("darn\n")
    assert rules.fingerprint() != before
    with pytest.raises(UserError, match=r"c4\.bad_words: .*missing\.txt cannot be read"):
        C4(bad_words=str(tmp_path / "missing.txt")).check()


@pytest.mark.slow
def test_pages_of_c4_pass_the_rules_that_made_them(real_data: Path) -> None:
    source = SourceConfig(files=(str(real_data / "c4_minimal/c4/en/3.0.1"),), format="tfds")
    pages = [text for unit in units(source) for _, text in documents(unit)]
    cleaned = [C4().apply(page) for page in pages]
    assert len(pages) == 1000
    for page, result in zip(pages, cleaned, strict=True):
        assert result.text.split("\n") == [line.strip() for line in page.split("\n")]
    # One page has two lines, in which C4's own program found three sentences.
    assert [result.dropped_by for result in cleaned if result.dropped_by] == ["sentence_count"]


def test_languages_are_identified() -> None:
    pytest.importorskip("py3langid", reason="the extra cleaning is not installed")
    english = "The committee has decided that the new bridge will be opened to traffic before the end of the year."
    german = "Der Ausschuss hat beschlossen, dass die neue Brücke noch vor Ende des Jahres eröffnet werden soll."
    only_english = Language(languages=("en",))
    assert not only_english.apply(english).dropped_by
    assert only_english.apply(german).dropped_by == "other_language"
    assert not Language(languages=("en", "de")).apply(german).dropped_by
    assert Language(languages=("en",), min_probability=1.0).apply("the of").dropped_by == "uncertain_language"
    with pytest.raises(UserError, match="language 'xx' is not known to py3langid"):
        Language(languages=("en", "xx")).check()
