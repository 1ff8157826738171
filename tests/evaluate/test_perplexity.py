"""Perplexity of texts: every token is scored once with enough context; the values equal a loop over single tokens."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

import t5x_lite
from t5x_lite.api import Model
from t5x_lite.cli import main
from t5x_lite.errors import UserError
from t5x_lite.evaluate.cached_evaluation import evaluate_cached
from t5x_lite.evaluate.evaluators import Perplexity
from t5x_lite.evaluate.perplexity import score_texts, scoring_windows

LINE = "the quick brown fox jumps over a lazy dog while seven wizards mix black opal quartz in vain.\n"
TEXTS = [LINE * 2, "fox", ""]


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> Model:
    return t5x_lite.load(tiny_run)


@pytest.mark.parametrize("length", [1, 5, 8, 9, 11, 23])
@pytest.mark.parametrize("stride", [1, 3, 8])
def test_every_token_is_scored_once_with_enough_context(length: int, stride: int) -> None:
    token_ids = np.arange(100, 100 + length)
    window = 8
    pairs = scoring_windows(token_ids, 7, window, stride)
    assert np.concatenate([targets for _, targets in pairs]).tolist() == token_ids.tolist()
    document = [7, *token_ids.tolist()]
    for number, (inputs, targets) in enumerate(pairs):
        tokens = [*inputs.tolist(), *targets.tolist()]
        assert len(tokens) - 1 == min(window, length)  # the model reads all but the last target
        start = document.index(tokens[0])
        assert document[start : start + len(tokens)] == tokens
        assert number == 0 or (len(targets) <= stride and len(inputs) >= window - stride + 1)


def test_scores_are_the_same_whether_the_cache_has_them(model: Model, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(LINE)
    path = model.run.folder / "eval" / str(model.step) / "scores.json"
    path.unlink(missing_ok=True)
    first = evaluate_cached(model, Perplexity(text=str(text)))
    first_file = path.read_text()
    path.unlink()
    again = evaluate_cached(model, Perplexity(text=str(text)))
    assert again == first
    assert path.read_text() == first_file
    assert json.loads(first_file).keys() == {f"eval/text/{name}" for name in score_texts(model, [LINE])}


def test_an_empty_document_has_no_windows() -> None:
    assert scoring_windows(np.zeros(0, np.int32), 7, 8, 4) == []


def test_perplexity_equals_a_loop_over_single_tokens(model: Model) -> None:
    """Each token's probability comes from the model's logits of exactly the tokens in its window."""
    window = 12
    stride = 5
    nats = 0.0
    tokens = 0
    for text in TEXTS:
        document = [model.eos, *model.tokenizer.encode(text).tolist()]
        length = len(document) - 1
        for position in range(1, length + 1):
            # The end of the window in which the token at `position` is scored.
            end = window if position <= window else window + math.ceil((position - window) / stride) * stride
            end = min(end, length)
            context = document[max(end - window, 0) : position]
            logits = model.logits([context])[0, -1].astype(np.float64)
            nats -= logits[document[position]] - np.log(np.exp(logits).sum())
            tokens += 1
    scores = score_texts(model, TEXTS, window, stride)
    assert (scores["tokens"], scores["documents"]) == (tokens, 2)
    assert scores["loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    words = sum(len(text.split()) for text in TEXTS)
    size = sum(len(text.encode()) for text in TEXTS)
    assert (scores["words"], scores["bytes"]) == (words, size)
    assert scores["word_perplexity"] == pytest.approx(math.exp(nats / words), rel=1e-5)
    assert scores["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_the_loss_in_one_window_is_the_score_of_the_text(model: Model) -> None:
    text = "seven wizards mix"
    assert score_texts(model, [text])["loss"] * len(model.tokenizer.encode(text)) == pytest.approx(
        -model.score([text])[0]
    )


def test_white_space_between_inputs_and_text_belongs_to_the_text(model: Model) -> None:
    score_of_both, score_of_inputs = model.score(["the quick brown fox", "the quick brown"])
    for inputs, text in (("the quick brown ", "fox"), ("the quick brown", " fox")):
        assert model.score([text], [inputs])[0] == pytest.approx(score_of_both - score_of_inputs, abs=1e-4)


def test_a_text_that_makes_the_last_token_of_the_inputs_longer_has_a_score(model: Model) -> None:
    """Every split of a word, also inside a token, leaves something to predict."""
    word = " wizards"
    for split in range(1, len(word)):
        assert model.score([word[split:]], ["seven" + word[:split]])[0] < 0


def test_a_score_after_inputs_is_the_score_of_both_minus_that_of_the_inputs(model: Model) -> None:
    inputs = "the quick brown"
    text = " fox jumps"
    score_of_both, score_of_inputs = model.score([inputs + text, inputs])
    assert model.score([text], [inputs])[0] == pytest.approx(score_of_both - score_of_inputs, abs=1e-4)


def test_settings_out_of_range_are_refused(model: Model) -> None:
    for window, stride in ((33, 4), (8, 9), (8, 0)):
        with pytest.raises(UserError):
            score_texts(model, TEXTS, window, stride)
    with pytest.raises(UserError, match="no text"):
        score_texts(model, [""])


def test_the_command_scores_a_file(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text_file = tmp_path / "a.txt"
    jsonl_file = tmp_path / "a.jsonl"
    text_file.write_text(TEXTS[0])
    jsonl_file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    command = ["eval", str(tiny_run), "window=16", "--stride=4", "--json"]
    assert main([*command, f"text={text_file}"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["step"] == 12
    assert scores["eval/text/documents"] == 1
    assert main([*command, f"text={jsonl_file}"]) == 0
    assert json.loads(capsys.readouterr().out)["eval/text/documents"] == 2
    for arguments in (
        ["text=no.txt"],
        [f"text={text_file}", "window=x"],
        [f"text={text_file}", "window=64"],
        ["--limit=3"],
    ):
        assert main(["eval", str(tiny_run), *arguments]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
