"""Cloze tasks: probabilities against Transformers' logits in the gap, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import t5x_lite
from t5x_lite import schema
from t5x_lite.cli import main
from t5x_lite.data.subword_training import train_byte_bpe
from t5x_lite.data.tokenizer import Tokenizer
from t5x_lite.data.tokenizer_config import ByteBPE
from t5x_lite.errors import UserError
from t5x_lite.evaluate.cloze import evaluate_cloze, fill_gap, read_cloze
from t5x_lite.evaluate.evaluators.cloze import Cloze, load_cloze
from tests.conftest import REPOSITORY

torch = pytest.importorskip("torch", reason="reference implementations need the extra hf: pip install -e '.[hf]'")
pytest.importorskip("transformers", reason="pip install -e '.[hf]'")

import tokenizers  # noqa: E402

from tests.evaluate.test_pseudo_likelihood import import_random_model  # noqa: E402

RECORDS = [("the quick brown fox", "0"), ("seven wizards mix", "1"), ("a lazy dog, while", "1")]
PATTERN = "{text}. over {mask} jumps"


def write_records(folder: Path) -> Path:
    path = folder / "dev.tsv"
    path.write_text("".join(f"{text}\t{label}\n" for text, label in RECORDS))
    return path


def cloze(path: Path, verbalizer: dict[str, str], **settings: Any) -> Cloze:
    values = {"files": str(path), "columns": ["text", "label"], "pattern": PATTERN, "verbalizer": verbalizer}
    return schema.validate(Cloze, schema.Sources({**values, **settings}, {}))


@pytest.fixture(scope="module", params=["BERT", "ELECTRA's generator", "T5"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    """Return a model of Transformers with random weights, its tokenizer, and the run that it was imported to."""
    return import_random_model(request.param, tmp_path_factory.mktemp("both"))


def gap_logits(hf_model: Any, tokenizer: tokenizers.Tokenizer, text: str) -> np.ndarray:
    """Return the scores of the vocabulary for the gap of a text."""
    is_t5 = hf_model.config.is_encoder_decoder
    ids = tokenizer.encode(text.replace("{mask}", "<extra_id_0>" if is_t5 else "[MASK]")).ids
    with torch.no_grad():
        if is_t5:
            sentinel = tokenizer.token_to_id("<extra_id_0>")
            return hf_model(torch.tensor([ids]), decoder_input_ids=torch.tensor([[0, sentinel]])).logits[0, 1].numpy()
        return hf_model(torch.tensor([ids])).logits[0, ids.index(tokenizer.token_to_id("[MASK]"))].numpy()


@pytest.mark.slow
def test_probabilities_equal_a_softmax_of_transformers_logits(
    both: tuple[Any, Any, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hf_model, tokenizer, run = both
    words = sorted(word for word in tokenizer.get_vocab() if word.isalpha())[:2]
    task = cloze(write_records(tmp_path), {"0": words[0], "1": words[1]})
    answers = evaluate_cloze(t5x_lite.load(run), task, read_cloze(task))
    correct = 0
    for answer, (text, label) in zip(answers, RECORDS, strict=True):
        logits = gap_logits(hf_model, tokenizer, PATTERN.replace("{text}", text))
        scores = np.exp([logits[tokenizer.token_to_id(word)] for word in words])
        np.testing.assert_allclose(list(answer.probabilities.values()), scores / scores.sum(), atol=2e-4)
        assert answer.prediction == str(int(scores.argmax()))
        assert answer.reference == label
        correct += str(int(scores.argmax())) == label

    path = tmp_path / "task.yaml"
    path.write_text(json.dumps({**task.model_dump(mode="json", exclude={"every_steps", "limit"}), "name": "toy"}))
    assert main(["eval", str(run), f"cloze={path}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["eval/toy/accuracy"] == pytest.approx(correct / 3)
    (saved,) = (run / "eval").glob("*/toy.jsonl")
    assert len(saved.read_text().splitlines()) == 3

    unknown = cloze(write_records(tmp_path), {"0": words[0], "1": "zebra"})
    with pytest.raises(UserError, match="verbalizer: 'zebra' is not one token of the vocabulary"):
        evaluate_cloze(t5x_lite.load(run), unknown, read_cloze(unknown))


@pytest.mark.slow
def test_decoders_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    task = cloze(write_records(tmp_path), {"0": "the", "1": "of"})
    with pytest.raises(UserError, match="cloze tasks are for models that fill gaps"):
        evaluate_cloze(t5x_lite.load(tiny_run), task, read_cloze(task))


@pytest.mark.parametrize(
    ("pattern", "words", "message"),
    [
        ("{text} is", "ab", r"pattern needs \{mask\} once"),
        ("it is {mask}", "ab", "pattern needs a column in braces"),
        ("{text} is {mask}", "aa", "two labels have the same word"),
    ],
)
def test_tasks_that_cannot_work_are_refused(pattern: str, words: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        cloze(tmp_path / "dev.tsv", {"0": words[0], "1": words[1]}, pattern=pattern)


def test_bad_records_name_the_file_and_the_line(tmp_path: Path) -> None:
    path = write_records(tmp_path)
    with pytest.raises(UserError, match=r"dev\.tsv:2: label '1' has no word; verbalizer has 0, 2"):
        read_cloze(cloze(path, {"0": "a", "2": "b"}))
    with pytest.raises(UserError, match=r"dev\.tsv:1: no column 'sentence' \(found text, label\)"):
        read_cloze(cloze(path, {"0": "a", "1": "b"}, pattern="{sentence} {mask}"))


def byte_level(controls: tuple[str, ...]) -> Tokenizer:
    text = "the film was great and it was good . the film was bad but it was long . " * 40
    return train_byte_bpe(ByteBPE(vocab=290, controls=controls), [text])


def test_the_tokens_around_a_gap_are_those_around_a_word() -> None:
    tokenizer = byte_level(("<unk>", "<mask>"))
    for text in ("it was {mask} .", "so {mask} was the film", "the <mask> was {mask}, long"):
        tokens, place = fill_gap(tokenizer, text, "film")
        filled = tokenizer.encode(text.replace("{mask}", "film"))
        assert tokens.tolist() == filled.tolist()
        assert tokenizer.decode(tokens[place : place + 1]).strip() == "film"
        assert tokenizer.id_of("<mask>") not in tokens.tolist()
    with pytest.raises(UserError, match=r"verbalizer: 'zebra' is not one token of the vocabulary \(.* .*\)"):
        fill_gap(tokenizer, "it was {mask} .", "zebra")


def test_a_null_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dev.jsonl"
    path.write_text('{"text": "x", "label": 0}\n{"text": null, "label": 0}\n')
    with pytest.raises(UserError, match=r"dev\.jsonl:2: column 'text' is null; remove the record"):
        read_cloze(cloze(path, {"0": "a", "1": "b"}))


def test_a_text_with_braces_is_filled_in_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "dev.tsv"
    path.write_text("a {second} {mask}\tb {text}\t0\n")
    columns = {"columns": ["text", "second", "label"], "pattern": "{text} {second} {mask}"}
    (text,) = read_cloze(cloze(path, {"0": "a", "1": "b"}, **columns))
    assert text.text == "a {second} { mask } b {text} {mask}"


def test_the_shipped_task_is_that_of_its_paper() -> None:
    task = load_cloze(REPOSITORY / "configs/cloze/sst2.yaml")
    assert task.fields == ["sentence"]
    assert task.verbalizer == {"0": "terrible", "1": "great"}
