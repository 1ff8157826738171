"""A recurrent sequence autoencoder: it trains, resumes to the bit, and begins a classifier."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import t5x_lite
from t5x_lite.cli import main
from tests.conftest import REPOSITORY, lines

CONFIGS = REPOSITORY / "configs/finetune"
WORDS = ("ant", "bee", "cat", "dog")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 200 texts of two words."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("".join(" ".join(rng.choice(WORDS, 2)) + "\n" for _ in range(200)))
    return path


@pytest.fixture(scope="module")
def autoencoder(texts: Path) -> Path:
    """The run directory of a small autoencoder."""
    run = texts.parent / "run"
    overrides = (
        f"run_dir={run}",
        f"data.files={texts}",
        "data.document=line",
        "data.validation_fraction=0.2",
        f"data.cache_dir={texts.parent / 'cache'}",
        "model.vocab=null",
        "model.embed=16",
        "model.pattern=[{mixer: {lstm: {hidden: [32], out: true}}}]",
        "tokenizer.words={vocab: 9, controls: [<unk>, <s>, </s>, <pad>, <mask>]}",
        "optimizer.learning_rate=0.02",
        "train={steps: 120, batch_size: 16, seq_len: 5}",
        "checkpoint.every_steps=60",
        "eval.every_steps=60",
    )
    assert main(["train", str(CONFIGS / "sa_lstm.yaml"), *overrides]) == 0
    return run


@pytest.mark.slow
def test_it_reproduces_texts_and_resumes_to_the_bit(
    autoencoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of the three tokens are words that are drawn alike: without memory the loss is about 2/3·log(4) = 0.92."""
    records = lines(autoencoder)
    assert records[-1]["loss"] < 0.1
    copy = tmp_path / "copy"
    shutil.copytree(autoencoder, copy)
    shutil.rmtree(copy / "checkpoints/120")
    assert main(["train", str(copy / "config.yaml"), f"run_dir={copy}"]) == 0
    assert "resumed from step 60" in capsys.readouterr().err
    losses = {line["step"]: line["loss"] for line in records if "loss" in line}
    assert {line["step"]: line["loss"] for line in lines(copy) if "loss" in line} == losses


@pytest.mark.slow
def test_its_weights_are_the_first_ones_of_a_classifier(autoencoder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = []
    for _ in range(64):
        words = [str(word) for word in rng.choice(WORDS, 2)]
        rows.append({"sentence": " ".join(words), "label": int("cat" in words)})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "about": "a test",
        "columns": {"text": "sentence", "label": "label"},
        "objective": {"classify": {"labels": ["no", "yes"]}},
        "metrics": ["accuracy"],
    }
    (tmp_path / "cats.yaml").write_text(json.dumps(task))
    run = tmp_path / "run"
    overrides = (
        f"adapt.from={autoencoder}",
        f"run_dir={run}",
        f"tasks={tmp_path / 'cats.yaml'}",
        f"data.files={tmp_path / 'rows.jsonl'}",
        f"data.validation_files={tmp_path / 'rows.jsonl'}",
        "model.vocab=null",
        "model.embed=16",
        "model.pattern=[{mixer: {lstm: {hidden: [32], out: true}}}]",
        "optimizer.learning_rate=0.01",
        "train={steps: 60, batch_size: 16, seq_len: 8}",
        "checkpoint={every_steps: 60, best_metric: eval/cats/accuracy}",
        "eval.every_steps=60",
    )
    assert main(["train", str(CONFIGS / "sa_lstm_imdb.yaml"), *overrides]) == 0
    assert lines(run)[-1]["eval/cats/accuracy"] > 0.95
    zero = t5x_lite.load(autoencoder).params
    assert zero["tokens"]["weight"].shape == t5x_lite.load(run).params["tokens"]["weight"].shape
