"""Overlap of evaluation sets with a corpus: against a brute-force definition, and what `prepare` drops and reports."""

import json
import string
from pathlib import Path

import numpy as np
import pytest

from t5x_lite.cli import main
from t5x_lite.data.cleaning.decontaminate import Decontaminate, find_overlaps
from t5x_lite.errors import UserError
from tests.data.test_cleaning import prepare, write_jsonl

SUM = "what is twelve plus thirty four and then minus five of all that"


def occurs(example: str, document: str, ngram_words: int, min_words: int) -> bool:
    """Return whether an n-gram of an example is in a document, by comparing all places."""

    def plain(text: str) -> list[str]:
        return "".join(letter for letter in text.lower() if letter not in string.punctuation).split()

    words = plain(example)
    others = plain(document)
    if len(words) < min_words:
        return False
    length = min(ngram_words, len(words))
    for start in range(len(words) - length + 1):
        for place in range(len(others) - length + 1):
            if words[start : start + length] == others[place : place + length]:
                return True
    return False


def test_overlaps_are_those_of_brute_force(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def text(least: int, most: int) -> str:
        words = rng.choice(["a", "B,", "c", "d."], rng.integers(least, most))
        return " ".join(words)

    examples = [text(2, 9) for _ in range(30)]
    documents = [text(1, 40) for _ in range(40)]
    write_jsonl(tmp_path / "set.jsonl", examples)
    settings = Decontaminate(files=(str(tmp_path / "set.jsonl"),), ngram_words=5, min_words=4)
    found_pairs = 0
    for document in documents:
        expected = tuple(n for n, example in enumerate(examples) if occurs(example, document, 5, 4))
        overlaps = find_overlaps(settings, document)
        assert overlaps == ({str(tmp_path / "set.jsonl"): expected} if expected else {})
        found_pairs += len(expected)
    assert 0 < found_pairs < len(examples) * len(documents)


def test_prepare_drops_documents_with_an_example_and_reports_it(
    tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of three questions one is in two documents, one in none, and one is too short to be looked for."""
    question = {"context": f"Q: {SUM[:19]}", "completion": SUM[20:]}
    records = [
        question,
        {"context": "Q: 1 + 1?", "completion": "2"},
        {"context": "one two three", "completion": "4 " * 9},
    ]
    questions = tmp_path / "set" / "questions.jsonl"
    questions.parent.mkdir()
    questions.write_text("".join(json.dumps(record) + "\n" for record in records))
    copied = f"A page. Q, {SUM}!"
    write_jsonl(tmp_path / "a.jsonl", [copied, "Q: 1 + 1? 2", f"Again: q {SUM.upper()}"])
    write_jsonl(tmp_path / "b.jsonl", [SUM.replace("plus", "and")])
    step = json.dumps([{"decontaminate": {"files": [str(questions)]}}])
    source, folder = prepare(tiny_config, tmp_path, capsys, f"data.cleaning={step}", "data.validation_fraction=0")
    assert source["train"]["documents"] == 2
    report = json.loads((folder / "cleaning.json").read_text())
    assert report["dropped"] == {"decontaminate.evaluation_overlap": 2}
    counts = dict(report["contamination"][str(questions)])
    (overlap,) = counts.pop("overlaps")
    assert counts == {"examples": 3, "searched": 2, "contaminated": 1, "share": 0.5}
    assert source["cleaning"]["contamination"] == {str(questions): counts}
    assert (overlap["example"], overlap["documents"]) == (0, 2)
    assert overlap["first_documents"][0] == {"file": str(tmp_path / "a.jsonl"), "text": copied}

    only_report = step.replace("]}}", '], "action": "report"}}')
    all_documents, other_folder = prepare(
        tiny_config, tmp_path, capsys, f"data.cleaning={only_report}", "data.validation_fraction=0"
    )
    assert all_documents["train"]["documents"] == 4
    other_report = json.loads((other_folder / "cleaning.json").read_text())
    assert other_report["contamination"] == report["contamination"]

    records[2]["completion"] = SUM  # another evaluation set is another corpus
    questions.write_text("".join(json.dumps(record) + "\n" for record in records))
    settings = [f"data.files={tmp_path}/*.jsonl", f"data.cache_dir={tmp_path}/cache", "tokenizer=bytes"]
    assert main(["prepare", str(tiny_config), *settings, "train.seq_len=4", f"data.cleaning={only_report}"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "evaluation sets in text" in output
    assert "100.00%" in output


def test_a_set_of_lines_and_chosen_columns(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text(f"\n{SUM}\nshort\n")
    (tmp_path / "marked.txt").write_text(SUM, encoding="utf-8-sig")
    (tmp_path / "table.tsv").write_text(f"question\tnote\nno such words in any of the documents here\t{SUM}\n")
    lines = Decontaminate(files=(str(tmp_path / "lines.txt"),))
    assert find_overlaps(lines, SUM) == {str(tmp_path / "lines.txt"): (0,)}
    marked = Decontaminate(files=(str(tmp_path / "marked.txt"),))
    assert find_overlaps(marked, SUM) == {str(tmp_path / "marked.txt"): (0,)}
    table = Decontaminate(files=(str(tmp_path / "table.tsv"),), fields=("question",))
    assert find_overlaps(table, SUM) == {}
    assert find_overlaps(table.model_copy(update={"fields": ("note",)}), SUM) == {str(tmp_path / "table.tsv"): (0,)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"files": ("{folder}/none.jsonl",)}, "no file matches"),
        ({"files": ("{folder}/short.jsonl",)}, "no example of .*short.jsonl has 8 words"),
        ({"files": ("{folder}/short.jsonl",), "fields": ("question",)}, "short.jsonl:1: no column 'question'"),
        ({"files": ("{folder}/broken.jsonl",)}, "broken.jsonl:1"),
    ],
    ids=["no file", "too short", "no column", "no JSON"],
)
def test_sets_that_cannot_be_searched_are_refused(
    settings: dict[str, tuple[str, ...]], message: str, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "short.jsonl", ["one two"])
    (tmp_path / "broken.jsonl").write_text("{")
    files = tuple(name.format(folder=tmp_path) for name in settings["files"])
    with pytest.raises(UserError, match=message):
        Decontaminate(**{**settings, "files": files}).check()
