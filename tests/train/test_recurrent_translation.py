"""A translation model of LSTMs with attention: it learns to reverse, it generates, and a tagger reads its encoder."""

import json
from pathlib import Path

import numpy as np
import pytest

import t5x_lite
from t5x_lite.cli import main
from tests.conftest import REPOSITORY, lines

CONFIGS = REPOSITORY / "configs/finetune"
WORDS = ("ant", "bee", "cat", "dog")


@pytest.fixture(scope="module")
def translation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a small model that has learnt to write words in reverse order."""
    folder = tmp_path_factory.mktemp("translation")
    rng = np.random.default_rng(0)
    sentences = [[str(word) for word in rng.choice(WORDS, 3)] for _ in range(400)]
    (folder / "text.en").write_text("".join(" ".join(words) + "\n" for words in sentences))
    (folder / "text.de").write_text("".join(" ".join(reversed(words)) + "\n" for words in sentences))
    overrides = (
        f"run_dir={folder / 'run'}",
        f"data.files={folder}/text.{{}}",
        f"data.cache_dir={folder / 'cache'}",
        "data.validation_fraction=0.1",
        "model.vocab=null",
        "model.embed=32",
        "model.dropout=0.0",
        "model.pattern=[{mixer: {lstm: {hidden: [16, 16], bidirectional: true}}}]",
        "model.decoder_mixer={lstm: {hidden: [32]}}",
        "objective.text_to_text.target_len=16",
        "tokenizer.words={vocab: 8, controls: [<unk>, <s>, </s>, <pad>]}",
        "optimizer.learning_rate=0.01",
        "train={steps: 150, batch_size: 16, seq_len: 16}",
        "checkpoint.every_steps=150",
        "eval.every_steps=150",
    )
    assert main(["train", str(CONFIGS / "cove_mt.yaml"), *overrides]) == 0
    return folder / "run"


@pytest.mark.slow
def test_it_translates_and_decodes_token_by_token(translation: Path) -> None:
    assert lines(translation)[-1]["eval/loss"] < 0.1
    model = t5x_lite.load(translation)
    outputs = model.generate(["ant bee cat", "dog dog ant"], tokens=4, temperature=0.0)
    assert [output.split() for output in outputs] == [["cat", "bee", "ant"], ["ant", "dog", "dog"]]


@pytest.mark.slow
def test_its_encoder_gives_a_tagger_features(translation: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = []
    for _ in range(64):
        words = [str(word) for word in rng.choice(WORDS, 4)]
        rows.append({"words": words, "tags": [int(word == "cat") for word in words]})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "about": "a test",
        "columns": {"words": "words", "tags": "tags"},
        "objective": {"tag": {"labels": ["O", "B-C"]}},
        "metrics": ["span_f1"],
    }
    (tmp_path / "cats.yaml").write_text(json.dumps(task))
    run = tmp_path / "run"
    overrides = (
        f"adapt.from={translation}",
        f"run_dir={run}",
        f"tasks={tmp_path / 'cats.yaml'}",
        f"data.files={tmp_path / 'rows.jsonl'}",
        f"data.validation_files={tmp_path / 'rows.jsonl'}",
        "objective.tag.mixer.lstm.hidden=[8]",
        "optimizer.learning_rate=0.02",
        "train={steps: 60, batch_size: 16, seq_len: 16}",
        "checkpoint={every_steps: 60, best_metric: eval/cats/span_f1}",
        "eval.every_steps=60",
    )
    assert main(["train", str(CONFIGS / "cove_conll2003.yaml"), *overrides]) == 0
    assert lines(run)[-1]["eval/cats/span_f1"] > 0.95
    before = t5x_lite.load(translation).params
    after = t5x_lite.load(run).params
    assert "decoder" not in after
    hidden = [params["encoder"]["stack"]["layers"]["0"]["mixer"]["backward_1"]["hidden"] for params in (before, after)]
    np.testing.assert_array_equal(*hidden)
