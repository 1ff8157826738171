"""A bidirectional language model of characters: it trains, resumes, embeds, and its layers are features of a tagger."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import t5x_lite
from t5x_lite import config as configuration
from t5x_lite.cli import main
from t5x_lite.errors import UserError
from t5x_lite.run_dir import open_run
from tests.conftest import REPOSITORY, lines

LSTM = "{lstm: {hidden: [20], projection: 16, bidirectional: true, separate_directions: true, cell_clip: 3.0}}"
TINY = (
    "model.vocab=null",
    "model.embed=32",
    "model.embedding=16",
    "model.characters={filters: [4, 4, 8], width: 4, length: 12, highways: 1}",
    f"model.pattern=[{{mixer: {LSTM}, residual: false}}, {{mixer: {LSTM}}}]",
    "model.dropout=0.1",
    "tokenizer.words={vocab: 22, split: punctuation}",
    "optimizer.warmup_steps=2",
    "optimizer.learning_rate=0.01",
    "data.validation_fraction=0.2",
    "train={steps: 60, batch_size: 8, seq_len: 26}",
    "checkpoint.every_steps=30",
    "eval.every_steps=30",
)
NOUNS = ("fox", "dog", "wizards", "zebra")
"""The last one is not in the text of the language model."""


@pytest.fixture(scope="module")
def elmo_run(prose: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a tiny ELMo."""
    folder = tmp_path_factory.mktemp("elmo")
    files = [f"data.files={prose}/*.txt", f"data.cache_dir={folder}/cache"]
    run = folder / "run"
    assert main(["train", str(REPOSITORY / "configs/elmo/small.yaml"), f"run_dir={run}", *files, *TINY]) == 0
    return run


@pytest.mark.slow
def test_it_learns_the_order_of_words_and_resumes_to_the_bit(
    elmo_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of the 18 words has one successor and one predecessor in the text, but for the borders of sentences."""
    first = {line["step"]: line["loss"] for line in lines(elmo_run) if "loss" in line}
    assert first[1] > np.log(18)
    assert lines(elmo_run)[-1]["eval/loss"] < 1.6
    copy = tmp_path / "copy"
    shutil.copytree(elmo_run, copy)
    shutil.rmtree(copy / "checkpoints/60")
    config = str(copy / "config.yaml")
    assert main(["train", config, f"run_dir={copy}"]) == 0
    assert "resumed from step 30" in capsys.readouterr().err
    assert {line["step"]: line["loss"] for line in lines(copy) if "loss" in line} == first


def test_a_run_without_its_words_is_refused(tmp_path: Path) -> None:
    """The vectors of tokens are made of their characters, which the tokenizer has."""
    config = configuration.load(REPOSITORY / "configs/elmo/small.yaml", ["data.files=x"])
    (tmp_path / "config.yaml").write_text(configuration.dump(config))
    with pytest.raises(UserError, match=r"has no tokenizer, and the vectors .* put tokenizer\.json there"):
        open_run(tmp_path)


@pytest.mark.slow
def test_words_have_vectors_by_their_characters_and_contexts(elmo_run: Path) -> None:
    model = t5x_lite.load(elmo_run)
    (layers,) = model.embed(["the quick fox"], pool="none")
    assert layers.shape == (5, 32)
    other = model.embed(["the lazy fox"], pool="none")[0]
    # Before the word that differs the forward half is the same, behind it the backward half.
    np.testing.assert_allclose(layers[1, :16], other[1, :16], atol=1e-6)
    np.testing.assert_allclose(layers[3, 16:], other[3, 16:], atol=1e-6)
    assert not np.allclose(layers[1, 16:], other[1, 16:], atol=1e-3)
    for use in (lambda: model.logits([1, 2]), lambda: model.score(["the fox"]), lambda: model.generate(["the"])):
        with pytest.raises(UserError, match=r"neighbours|does not generate"):
            use()


@pytest.mark.slow
def test_a_tagger_learns_from_the_mixture_of_its_three_layers(elmo_run: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vocabulary = ["the", "quick", "brown", *NOUNS]
    (tmp_path / "words.txt").write_text("\n".join(["fox", "dog", "wizards", "the", "quick", "brown", "zebra"]))
    rows = []
    for _ in range(64):
        words = [str(word) for word in rng.choice(vocabulary, 5)]
        rows.append({"words": words, "tags": [int(word in NOUNS) for word in words]})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "about": "a test",
        "columns": {"words": "words", "tags": "tags"},
        "objective": {"tag": {"labels": ["O", "B-N"]}},
        "metrics": ["span_f1"],
    }
    (tmp_path / "nouns.yaml").write_text(json.dumps(task))
    run = tmp_path / "run"
    overrides = (
        f"adapt={{from: {elmo_run}, new_tokenizer: true}}",
        f"tokenizer.words={{file: {tmp_path / 'words.txt'}, vocab: 10}}",
        "model.vocab=null",
        f"run_dir={run}",
        f"tasks={tmp_path / 'nouns.yaml'}",
        f"data.files={tmp_path / 'rows.jsonl'}",
        f"data.validation_files={tmp_path / 'rows.jsonl'}",
        "objective.tag.mixer.lstm.hidden=[8]",
        "optimizer.learning_rate=0.02",
        "train={steps: 60, batch_size: 16, seq_len: 16}",
        "checkpoint={every_steps: 60, best_metric: eval/nouns/span_f1}",
        "eval.every_steps=60",
    )
    assert main(["train", str(REPOSITORY / "configs/finetune/elmo_conll2003.yaml"), *overrides]) == 0
    records = lines(run)
    assert records[-1]["eval/nouns/span_f1"] > 0.95
    assert records[0]["penalty"] == 0 < records[-1]["penalty"]
    assert t5x_lite.load(run).tokenizer.encode("zebra fox").tolist() == [7, 1]
    before = t5x_lite.load(elmo_run).params
    after = t5x_lite.load(run).params
    np.testing.assert_array_equal(before["tokens"]["characters"], after["tokens"]["characters"])
    mix = after["encoder"]["stack"]["mix"]
    assert mix["weights"].shape == (3,)
    assert np.abs(np.asarray(mix["weights"])).max() > 0
