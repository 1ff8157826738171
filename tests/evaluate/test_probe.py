"""Probes of layers: the classifier against scikit-learn, the geometry against its definition, and the command."""

import json
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t5x_lite.cli import main
from t5x_lite.errors import UserError
from t5x_lite.evaluate.layer_geometry import anisotropy, self_similarity
from t5x_lite.evaluate.linear_probe import fit_probe
from t5x_lite.evaluate.probe import LabelledTexts, ProbeSettings, read_labelled

rng = np.random.default_rng(0)
STATES = rng.normal(size=(60, 5)) + 0.5
TEXTS = np.sort(rng.integers(0, 9, 60))
WORDS = rng.integers(0, 6, 60)


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def test_anisotropy_is_the_mean_cosine_of_all_pairs_of_tokens_of_different_texts() -> None:
    cosines = [cosine(STATES[a], STATES[b]) for a, b in combinations(range(60), 2) if TEXTS[a] != TEXTS[b]]
    assert anisotropy(STATES, TEXTS) == pytest.approx(np.mean(cosines), rel=1e-9)


def test_self_similarity_is_the_mean_over_words_of_the_mean_cosine_of_their_contexts() -> None:
    """Ethayarajh 2019, definition 1, by loops."""
    similarities = []
    for word in range(6):
        places = []
        for text in range(9):
            in_text = [place for place in range(60) if WORDS[place] == word and TEXTS[place] == text]
            places += in_text[:1]
        if len(places) >= 5:
            pairs = [cosine(STATES[a], STATES[b]) for a, b in product(places, places) if a != b]
            similarities.append(np.mean(pairs))
    assert 0 < len(similarities) < 7
    assert self_similarity(STATES, WORDS, TEXTS) == pytest.approx(np.mean(similarities), rel=1e-9)


def test_geometry_of_too_little_text_is_not_a_number() -> None:
    assert np.isnan(anisotropy(STATES[:3], np.zeros(3, int)))
    assert np.isnan(self_similarity(STATES[:3], np.zeros(3, int), np.arange(3)))


def test_values_that_are_none_or_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x", "label": 1}\n{"text": null, "label": 0}\n')
    settings = ProbeSettings(limit=1)
    assert read_labelled(path, settings) == LabelledTexts(["x"], ["1"])
    with pytest.raises(UserError, match=r"a\.jsonl:2: column 'text' is null; remove the record"):
        read_labelled(path, replace(settings, limit=2))


@pytest.mark.parametrize("classes", [2, 3])
def test_the_classifier_equals_scikit_learns(classes: int) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    inputs = rng.normal(size=(80, 4)) * [1, 5, 0.1, 2] + 3
    directions = rng.normal(size=(4, classes))
    labels = ((inputs - inputs.mean(0)) @ directions + rng.normal(size=(80, classes))).argmax(1)
    assert len(set(labels)) == classes
    probe = fit_probe(inputs, labels, classes, strength=0.5)
    standard = (inputs - inputs.mean(0)) / inputs.std(0)
    # For two classes scikit-learn has one weight w; here there are two, ±w/2, whose penalty is half of w's.
    strength = 1.0 if classes == 2 else 0.5
    theirs = linear_model.LogisticRegression(C=strength, tol=1e-8, max_iter=1000).fit(standard, labels)
    if classes == 2:
        np.testing.assert_allclose(probe.weight[:, 1] - probe.weight[:, 0], theirs.coef_[0], atol=2e-3)
    else:
        np.testing.assert_allclose(probe.weight.T, theirs.coef_, atol=2e-3)
    assert probe.accuracy(inputs, labels) == theirs.score(standard, labels)


def write_labelled(path: Path, count: int) -> Path:
    """Texts without a header whose label is whether they say fox."""
    lines = []
    for number in range(count):
        subject = ("fox", "dog")[number % 2]
        lines.append(f"the quick brown {subject} jumps {'over ' * (number % 3)}\t{subject == 'fox':d}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(("limit", "count"), [(0, 2001), (3, 3), (2000, 2000)])
def test_a_limit_of_0_reads_all_records(limit: int, count: int, tmp_path: Path) -> None:
    path = write_labelled(tmp_path / "train.tsv", 2001)
    assert len(read_labelled(path, ProbeSettings(columns=("text", "label"), limit=limit)).texts) == count


@pytest.mark.slow
def test_the_command_prints_and_draws_every_layer(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write_labelled(tmp_path / "train.tsv", 40)
    test = write_labelled(tmp_path / "test.tsv", 21)
    picture = tmp_path / "probe.png"
    command: list[Any] = ["probe", tiny_run, "--train", train, "--test", test, "--to", picture]
    assert main([str(word) for word in [*command, "--columns", "text", "label"]]) == 0
    output = capsys.readouterr().out
    assert [line.split()[0] for line in output.splitlines()] == ["layer", "0", "1", "2", "most"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    report = json.loads(picture.with_suffix(".json").read_text())
    assert report["classes"] == ["0", "1"]
    assert report["majority"] == pytest.approx(10 / 21)
    assert [layer["layer"] for layer in report["layers"]] == [0, 1, 2]
    assert all(layer["accuracy"] == 1 for layer in report["layers"])  # the mean of the states holds the word

    def refused(*words: object) -> str:
        assert main([str(word) for word in [*command, *words]]) == 2
        return capsys.readouterr().err

    unknown = tmp_path / "unknown.tsv"
    unknown.write_text("the fox\tmaybe\n")
    message = refused("--columns", "text", "label", "--test", unknown)
    assert "unknown.tsv: label 'maybe' is not in the training file, which has 0, 1" in message
    assert "no column 'text'" in refused("--columns", "sentence", "label")
    assert "--pool middle is not one of mean, cls, max" in refused("--columns", "text", "label", "--pool", "middle")
    assert "the first token of a decoder sees no other" in refused("--columns", "text", "label", "--pool", "cls")
    assert "is not the name of a picture" in refused("--to", tmp_path / "probe.txt")
