"""C4's deduplication of spans of three sentences, against a hand-written example and its definition in plain text."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from t5x_lite.cli import main
from t5x_lite.data.cleaning.c4_spans import C4Spans
from t5x_lite.data.cleaning.sentences import SentenceSpans, remove_sentences, split_sentences
from t5x_lite.data.cleaning.sorted_hashes import SortedHashes
from tests.data.test_cleaning import prepare, tokens_of, write_jsonl

DOCUMENTS = [
    "Ann ate. Bob sat. Cat ran. Dog dug.",
    # The spans Ann-Bob-Cat and Bob-Cat-Dog are in the first document. Three sentences are left.
    "Owl flew.\nann  ate. BOB sat. Cat\tran.\nDog dug. Pig hid. Rat bit.",
    # Dog-Pig-Rat lost its first sentence in the second document, so this is the only occurrence.
    "Dog dug. Pig hid. Rat bit.",
    # One sentence is left, which is too little.
    "Bob sat. Cat ran. Dog dug. Yak sang.",
    # The document before was dropped, so nothing has Cat-Dog-Yak. Four sentences are no span that repeats.
    "Cat ran. Dog dug. Yak sang.\n",
    # Two sentences in common are no span in common; a document that loses nothing may be short.
    "Ann ate. Bob sat.",
    # The second half repeats the first. The white space before it goes, too.
    "Éve won! Fox lay? Gnu fed.\n\nÉve won! Fox lay? Gnu fed.",
    # Occurrences that overlap stay.
    "Ha! Ha! Ha! Ha!",
]
LEFT = [
    DOCUMENTS[0],
    "Owl flew.\nPig hid. Rat bit.",
    DOCUMENTS[2],
    None,
    DOCUMENTS[4],
    DOCUMENTS[5],
    "Éve won! Fox lay? Gnu fed.",
    DOCUMENTS[7],
]


def deduplicate(texts: Sequence[str], settings: C4Spans, documents_of_call: int) -> list[str | None]:
    """Return the texts that are left, and None for those that are dropped."""
    index = settings.build_index()
    left: list[str | None] = []
    for start in range(0, len(texts), documents_of_call):
        some = texts[start : start + documents_of_call]
        spans = SentenceSpans.concatenate([settings.fingerprint(text) for text in some])
        repeated = index.add(spans)
        lost_bytes = spans.removed_bytes(repeated.is_removed)
        removed = np.split(repeated.is_removed, np.cumsum(spans.sentence_counts)[:-1])
        for number, text in enumerate(some):
            if repeated.is_dropped[number]:
                left.append(None)
                continue
            shorter = remove_sentences(text, set(np.flatnonzero(removed[number]).tolist()))
            assert len(shorter.encode()) == len(text.encode()) - lost_bytes[number]
            left.append(shorter)
    return left


@pytest.mark.parametrize("documents_of_call", [1, 3, len(DOCUMENTS)])
def test_a_hand_written_example(documents_of_call: int) -> None:
    # Owl, Pig and Rat are three sentences, so that the second document stays.
    assert deduplicate(DOCUMENTS, C4Spans(), documents_of_call) == LEFT


def brute_force(documents: Sequence[Sequence[str]], size: int, min_sentences: int) -> list[list[str] | None]:
    """Deduplicate by the definition: compare every span with every earlier one whose sentences are all retained."""
    retained: list[list[bool]] = []
    left: list[list[str] | None] = []
    for number, sentences in enumerate(documents):
        retained.append([True] * len(sentences))
        for start in range(len(sentences) - size + 1):
            for other in range(number + 1):
                for place in range(len(documents[other]) - size + 1):
                    is_before = other < number or place + size <= start
                    is_whole = all(retained[other][place : place + size])
                    is_equal = documents[other][place : place + size] == sentences[start : start + size]
                    if is_before and is_whole and is_equal:
                        retained[number][start : start + size] = [False] * size
        some = [sentence for sentence, stays in zip(sentences, retained[number], strict=True) if stays]
        if len(some) < len(sentences) and len(some) < min_sentences:
            retained[number] = [False] * len(sentences)
            left.append(None)
        else:
            left.append(some)
    return left


@pytest.mark.parametrize(("size", "min_sentences"), [(1, 1), (2, 4), (3, 1), (3, 3)])
def test_the_same_sentences_are_left_as_by_brute_force(size: int, min_sentences: int) -> None:
    rng = np.random.default_rng(size)
    settings = C4Spans(span_sentences=size, min_sentences=min_sentences)
    lost = 0
    dropped = 0
    for vocabulary in (2, 3, 5, 40):
        documents: list[list[str]] = []
        for _ in range(40):
            sentences = [f"S{number}." for number in rng.integers(vocabulary, size=rng.integers(1, 12))]
            if documents and rng.random() < 0.5:
                sentences[2:2] = documents[rng.integers(len(documents))][: rng.integers(9)]
            documents.append(sentences)
        expected = brute_force(documents, size, min_sentences)
        texts = [" ".join(sentences) for sentences in documents]
        joined = [None if sentences is None else " ".join(sentences) for sentences in expected]
        for documents_of_call in (1, 7, 40):
            assert deduplicate(texts, settings, documents_of_call) == joined
        dropped += expected.count(None)
        lost += sum(left not in (None, before) for left, before in zip(expected, documents, strict=True))
    # Enough documents of either kind for the comparison to tell.
    assert dropped > 40
    assert lost > 15


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        (" \n", []),
        ("One", ["One"]),
        ("\n One. Two", ["\n One. ", "Two"]),
        ('He said "No." (Why?) Yes!\n', ['He said "No." ', "(Why?) ", "Yes!\n"]),
        ("So . . . it is. ?!\nOh\n...\n.5 m", ["So . . . ", "it is. ?!\n", "Oh\n...\n", ".5 m"]),
        ("A title\n\nIt is 3.5 m.\r\nEnd", ["A title\n\n", "It is 3.5 m.\r\n", "End"]),
    ],
)
def test_sentences_end_with_a_mark_or_a_line(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def test_much_white_space_takes_linear_time() -> None:
    # A quadratic search takes minutes.
    for space in ("\n", " \n", " "):
        assert len(split_sentences(f"One.{space * 300_000}.")) == 1


def test_sentences_of_equal_words_differ() -> None:
    settings = C4Spans(span_sentences=2)
    hashes = [settings.fingerprint(text).hashes.tolist() for text in ("x y\nz", "x\ny z", "X  Y\n\nz\n")]
    assert [len(spans) for spans in hashes] == [1, 1, 1]
    assert hashes[0] != hashes[1]
    assert hashes[0] == hashes[2]


def test_a_set_of_hashes_is_a_set() -> None:
    rng = np.random.default_rng(0)
    hashes = SortedHashes(merged_hashes=500)
    expected: set[int] = set()
    for _ in range(60):
        candidates = rng.integers(0, 3000, rng.integers(0, 60), dtype=np.uint64)
        is_contained = hashes.contains(candidates)
        assert is_contained.tolist() == [number in expected for number in candidates.tolist()]
        hashes.add(np.unique(candidates[~is_contained]))
        expected.update(candidates.tolist())
    largest = np.array([2**64 - 1, 0], np.uint64)
    assert hashes.contains(largest).tolist() == [False, 0 in expected]


def test_the_corpus_holds_what_is_left(tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "a.jsonl", [*DOCUMENTS[:2], "", *DOCUMENTS[2:4]])
    write_jsonl(tmp_path / "b.jsonl", [*DOCUMENTS[4:], DOCUMENTS[0]])
    settings = ("data.cleaning=[exact,c4_spans]", "data.validation_fraction=0")
    source, folder = prepare(tiny_config, tmp_path, capsys, *settings)
    texts = [text for text in LEFT if text is not None]
    assert source["train"]["documents"] == len(texts) == 7
    assert source["train"]["tokens"] == tokens_of(texts)
    report = json.loads((folder / "cleaning.json").read_text())
    assert report["cleaning"][1] == {"c4_spans": {"span_sentences": 3, "min_sentences": 3}}
    assert report["documents"] == 10
    assert report["retained_documents"] == 7
    assert report["retained_text_bytes"] == sum(len(text.encode()) for text in texts)
    assert report["dropped"] == {"empty": 1, "exact.duplicates": 1, "c4_spans.sentence_count": 1}
    # Four of the second document, and three of the one that repeats itself.
    assert report["removals"] == {"c4_spans.repeated_sentences": 7}
    assert source["cleaning"]["removals"] == report["removals"]
    assert not list(folder.glob("*.filtered.*"))


def test_filters_run_before_spans_are_compared(
    tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"This is line number {number} of it." for number in range(6)]
    write_jsonl(tmp_path / "a.jsonl", ["\n".join(lines[:3]), "\n".join([*lines[3:], lines[0], "Menu", *lines[1:3]])])
    settings = ("data.cleaning=[c4,c4_spans]", "data.validation_fraction=0")
    source, folder = prepare(tiny_config, tmp_path, capsys, *settings)
    assert source["train"]["tokens"] == tokens_of(["\n".join(lines[:3]), "\n".join(lines[3:])])
    report = json.loads((folder / "cleaning.json").read_text())
    assert report["removals"] == {"c4.lines_without_terminal_mark": 1, "c4_spans.repeated_sentences": 3}
    assert report["retained_text_bytes"] == source["train"]["tokens"] - 2  # without the EOS of each


@pytest.mark.parametrize("cleaning", ["[c4_spans,exact]", "[c4_spans,c4]"])
def test_spans_come_last(tiny_config: Path, capsys: pytest.CaptureFixture[str], cleaning: str) -> None:
    assert main(["prepare", str(tiny_config), f"data.cleaning={cleaning}"]) == 2
    errors = capsys.readouterr().err
    assert "c4_spans must come last" in errors
    assert len(errors.strip().splitlines()) == 1
