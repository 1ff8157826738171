"""Planted strings and the share of them that a model extracts: against greedy decoding, and a model that memorises."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import t5x_lite
from t5x_lite.decode.sampling import Sampling
from t5x_lite.errors import UserError
from t5x_lite.evaluate.canaries import main as plant
from t5x_lite.evaluate.canaries import read_canaries
from t5x_lite.evaluate.evaluators.memorisation import Memorisation
from tests.conftest import Shell

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "wizards",
    "mix",
    "black",
    "opal",
    "quartz",
    "in",
    "vain",
]


def random_text(words: int) -> str:
    return " ".join(np.random.default_rng(0).choice(WORDS, words))


def test_strings_are_planted_as_often_as_they_say(tmp_path: Path) -> None:
    (tmp_path / "held_out.txt").write_text(random_text(100))
    options = ["--repeats", "0", "1", "3", "--strings", "2", "--words", "10", "--seed", "1"]
    assert plant([str(tmp_path / "held_out.txt"), str(tmp_path / "planted"), *options]) == 0
    strings = read_canaries(str(tmp_path / "planted/strings.jsonl"))
    assert Counter(string.repeats for string in strings) == {0: 2, 1: 2, 3: 2}
    assert " ".join(string.text for string in strings) == " ".join(random_text(100).split()[:60])
    lines = (tmp_path / "planted/documents.jsonl").read_text().splitlines()
    copies = Counter(json.loads(line)["text"] for line in lines)
    assert copies == {string.text: string.repeats for string in strings if string.repeats}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a", "repeats": -1}', "strings.jsonl:1: repeats must be a whole number from 0, found -1"),
        ('{"text": "a"}', "strings.jsonl:1: repeats must be a whole number from 0, found None"),
        ('{"text": "", "repeats": 1}', "strings.jsonl:1: a planted string needs a text"),
        ("", "has no planted strings"),
    ],
)
def test_lines_that_are_no_planted_strings_are_refused(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "strings.jsonl").write_text(line)
    with pytest.raises(UserError, match=message):
        read_canaries(str(tmp_path / "strings.jsonl"))


def test_a_text_that_is_too_short_is_one_line_of_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "held_out.txt").write_text("too few words")
    assert plant([str(tmp_path / "held_out.txt"), str(tmp_path / "planted"), "--strings", "2", "--words", "10"]) == 2
    assert capsys.readouterr().err == ("canaries: 5 × 2 strings of 10 words need 100 words; found 3\n")


def test_a_string_is_extracted_if_greedy_decoding_writes_it(tiny_run: Path, tmp_path: Path) -> None:
    model = t5x_lite.load(tiny_run)
    lines = []
    for number in range(40):
        words = [WORDS[(number + k) % len(WORDS)] for k in range(9)]
        lines.append(json.dumps({"text": " ".join(words), "repeats": number % 2}) + "\n")
    lines.append(json.dumps({"text": "fox", "repeats": 1}) + "\n")
    path = tmp_path / "strings.jsonl"
    path.write_text("".join(lines))
    metrics = model.evaluate(Memorisation(file=str(path), prompt_tokens=6, tokens=1))
    strings = read_canaries(str(path))[:-1]
    rows = model.tokenizer.encode_batch([string.text for string in strings])
    decoding = Sampling(tokens=1, temperature=0.0)
    written = list(model.generator.stream_tokens([row[:6] for row in rows], decoding))[-1]
    expected = written[:, 0] == np.array([row[6] for row in rows])
    assert 0 < expected.sum() < len(expected)  # both outcomes occur
    repeats = np.array([string.repeats for string in strings])
    assert metrics == {
        "memorisation/repeats_0": pytest.approx(expected[repeats == 0].mean()),
        "memorisation/repeats_1": pytest.approx(expected[repeats == 1].mean()),
        "memorisation/strings": 40,
        "memorisation/too_short": 1,
    }
    short = tmp_path / "short.jsonl"
    short.write_text(lines[-1])
    with pytest.raises(UserError, match="no string has 31 tokens; the longest has"):
        model.evaluate(Memorisation(file=str(short), prompt_tokens=30, tokens=1))
    with pytest.raises(UserError, match="are more than the model's 32 positions"):
        model.evaluate(Memorisation(file=str(path), prompt_tokens=30, tokens=30))


@pytest.mark.slow
def test_a_model_that_memorises_extracts_what_is_repeated_and_nothing_else(
    tiny_config: Path, tmp_path: Path, t5x_lite: Shell
) -> None:
    (tmp_path / "held_out.txt").write_text(random_text(200))
    options = ["--repeats", "0", "32", "--strings", "3", "--words", "12"]
    assert plant([str(tmp_path / "held_out.txt"), str(tmp_path / "planted"), *options]) == 0
    settings = {
        "data.files": tmp_path / "planted/documents.jsonl",
        "data.validation_files": tmp_path / "held_out.txt",
        "data.cache_dir": tmp_path / "cache",
        "data.packing": "none",
        "tokenizer.unigram.vocab": 290,
        "train.seq_len": 32,
        "train.steps": 250,
        "train.batch_size": 8,
        "optimizer.learning_rate": 0.01,
        "checkpoint.every_steps": 250,
        "eval.every_steps": 250,
        "run_dir": tmp_path / "run",
    }
    trained = t5x_lite("train", tiny_config, *(f"{key}={value}" for key, value in settings.items()))
    assert trained.returncode == 0, trained.stderr
    command = ["eval", tmp_path / "run", f"memorisation={tmp_path / 'planted/strings.jsonl'}", "--json"]
    refused = t5x_lite(*command)
    assert refused.returncode == 2
    assert "are more than the model's 32 positions" in refused.stderr
    import t5x_lite as package

    evaluator = Memorisation(file=str(tmp_path / "planted/strings.jsonl"), prompt_tokens=8, tokens=10)
    metrics = package.load(tmp_path / "run").evaluate(evaluator)
    assert metrics["memorisation/repeats_32"] == 1
    assert metrics["memorisation/repeats_0"] == 0
