"""Recall by hand."""

from pathlib import Path

import numpy as np
import pytest

from t5x_lite.errors import UserError
from t5x_lite.objectives.passages import Passage
from t5x_lite.retrieval.collection import StoredPassage, read_collection
from t5x_lite.retrieval.recall import contains_words, read_queries, recall_at, split_words
from tests.retrieval.conftest import write_records


def test_recall_counts_queries_with_any_relevant_passage_so_far() -> None:
    is_relevant = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 1]], bool)
    assert recall_at(is_relevant, (1, 2, 3)) == {1: 0.25, 2: 0.5, 3: 0.75}


@pytest.mark.parametrize(
    ("answer", "is_in"),
    [("Fox", True), ("quick fox", True), ("quick  fox,", True), ("ick fox", False), ("fox quick", False), ("", False)],
)
def test_an_answer_is_a_sequence_of_words(answer: str, is_in: bool) -> None:
    assert contains_words(split_words("The quick fox, again."), split_words(answer)) == is_in


def test_queries_name_relevant_passages_in_three_ways(tmp_path: Path) -> None:
    records: list[dict[str, object]] = [
        {"query": "a", "positive": {"title": "T", "text": "x"}},
        {"question": "b", "answers": ["fox"], "positive_ctxs": []},
        {"query": "c", "ids": [7]},
    ]
    queries = read_queries(write_records(tmp_path / "queries.jsonl", records))
    titled = StoredPassage("1", Passage("x", "T"))
    untitled = StoredPassage("7", Passage("x"))
    fox = StoredPassage("2", Passage("a Fox."))
    assert [query.finds(titled) for query in queries] == [True, False, False]
    assert [query.finds(untitled) for query in queries] == [False, False, True]
    assert [query.finds(fox) for query in queries] == [False, True, False]


def test_collections_of_every_format(tmp_path: Path) -> None:
    (tmp_path / "psgs.tsv").write_text("id\ttext\ttitle\n5\ta fox\tAnimals\n9\ta dog\t\n")
    (tmp_path / "lines.txt").write_text("a fox\n\na dog\n")
    (tmp_path / "list.json").write_text('[{"text": "a fox", "title": "Animals"}, "a dog"]')
    table = list(read_collection(tmp_path / "psgs.tsv"))
    assert table == [StoredPassage("5", Passage("a fox", "Animals")), StoredPassage("9", Passage("a dog"))]
    assert [StoredPassage.from_json(stored.to_json()) for stored in table] == table
    text = list(read_collection(tmp_path / "lines.txt"))
    assert text == [StoredPassage("0", Passage("a fox")), StoredPassage("1", Passage("a dog"))]
    listed = list(read_collection(tmp_path / "list.json"))
    assert listed == [StoredPassage("0", Passage("a fox", "Animals")), StoredPassage("1", Passage("a dog"))]
    with pytest.raises(UserError, match="not a JSON list"):
        (tmp_path / "list.json").write_text('[{"text": "a fox"')
        list(read_collection(tmp_path / "list.json"))


def test_words_are_split_as_dpr_splits_them() -> None:
    """DPR's tokens are runs of letters, numbers and marks ([\\p{L}\\p{N}\\p{M}]+), and single other signs."""
    assert split_words("naïve café, 3.5%") == ["nai\u0308ve", "cafe\u0301", ",", "3", ".", "5", "%"]
    assert split_words("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]
    assert not contains_words(split_words("a café"), split_words("cafe"))
