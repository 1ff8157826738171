"""Perplexity of texts: every token once, with the context that is promised, against a loop over single positions."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

import t5x_lite
from t5x_lite.api import Model
from t5x_lite.cli import main
from t5x_lite.errors import UserError
from t5x_lite.evaluate.perplexity import score_texts, scoring_windows

LINE = "the quick brown fox jumps over a lazy dog while seven wizards mix black opal quartz in vain.\n"
TEXTS = [LINE * 2, "fox", ""]


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> Model:
    return t5x_lite.load(tiny_run)


@pytest.mark.parametrize("length", [1, 5, 8, 9, 11, 23])
@pytest.mark.parametrize("stride", [1, 3, 8])
def test_every_token_is_scored_once_with_enough_context(length: int, stride: int) -> None:
    ids, window = np.arange(100, 100 + length), 8
    pairs = scoring_windows(ids, 7, window, stride)
    assert np.concatenate([targets for _, targets in pairs]).tolist() == ids.tolist()
    whole = [7, *ids.tolist()]
    for number, (inputs, targets) in enumerate(pairs):
        read = [*inputs.tolist(), *targets.tolist()]
        assert len(read) - 1 == min(window, length)  # what the model reads: always as much as there is
        at = whole.index(read[0])
        assert whole[at : at + len(read)] == read
        assert number == 0 or (len(targets) <= stride and len(inputs) >= window - stride + 1)


def test_no_token_is_no_window() -> None:
    assert scoring_windows(np.zeros(0, np.int32), 7, 8, 4) == []


def test_perplexity_equals_a_loop_over_single_tokens(model: Model) -> None:
    """Each token's probability from the model's own logits of exactly the tokens that its window holds."""
    window, stride, nats, tokens = 12, 5, 0.0, 0
    for text in TEXTS:
        whole = [model.eos, *model.tokenizer.encode(text).tolist()]
        count = len(whole) - 1
        for place in range(1, count + 1):
            # The end of the window in which the token `place` is scored.
            end = window if place <= window else window + math.ceil((place - window) / stride) * stride
            end = min(end, count)
            read = whole[max(end - window, 0) : place]
            scores = model.logits([read])[0, -1].astype(np.float64)
            nats -= scores[whole[place]] - np.log(np.exp(scores).sum())
            tokens += 1
    found = score_texts(model, TEXTS, window, stride)
    assert (found["tokens"], found["documents"]) == (tokens, 2)
    assert found["loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    words, size = sum(len(t.split()) for t in TEXTS), sum(len(t.encode()) for t in TEXTS)
    assert (found["words"], found["bytes"]) == (words, size)
    assert found["word_perplexity"] == pytest.approx(math.exp(nats / words), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_one_window_is_the_score_of_the_text(model: Model) -> None:
    text = "seven wizards mix"
    assert score_texts(model, [text])["loss"] * len(model.tokenizer.encode(text)) == pytest.approx(
        -model.score([text])[0]
    )


def test_a_score_after_inputs_is_that_of_both_less_that_of_the_inputs(model: Model) -> None:
    before, text = "the quick brown", " fox jumps"
    both, alone = model.score([before + text, before])
    assert model.score([text], [before])[0] == pytest.approx(both - alone, abs=1e-4)


def test_settings_out_of_range_are_refused(model: Model) -> None:
    for window, stride in ((33, 4), (8, 9), (8, 0)):
        with pytest.raises(UserError):
            score_texts(model, TEXTS, window, stride)
    with pytest.raises(UserError, match="no text"):
        score_texts(model, [""])


def test_the_command_scores_a_file(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    plain.write_text(TEXTS[0])
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    command = ["eval", str(tiny_run), "window=16", "--stride=4", "--json"]
    assert main([*command, f"text={plain}"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["step"] == 12
    assert found["eval/text/documents"] == 1
    assert main([*command, f"text={lines}"]) == 0
    assert json.loads(capsys.readouterr().out)["eval/text/documents"] == 2
    for wrong in (["text=no.txt"], [f"text={plain}", "window=x"], [f"text={plain}", "window=64"], ["--limit=3"]):
        assert main(["eval", str(tiny_run), *wrong]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
