"""Runs of XLNet: they learn, resume exactly, embed texts and are fine-tuned."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import t5x_lite
from t5x_lite import config as configuration
from t5x_lite.cli import main
from t5x_lite.decode.fill import fill_masks
from t5x_lite.errors import UserError
from t5x_lite.evaluate.embed import embed, encode_texts
from t5x_lite.objectives.classify import Classify
from tests.conftest import lines

SETTINGS = (
    "model.family=encoder",
    "model.positions={transformer_xl: {segments: true}}",
    "model.query_stream=true",
    "model.dropout=0.1",
    "objective={permutation: {order: 16}}",
    "tokenizer={unigram: {vocab: 300, controls: [<cls>, <sep>]}}",
    "train.seq_len=32",
)


@pytest.mark.slow
def test_a_run_learns_resumes_to_the_bit_and_embeds(tiny_config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train = ["train", str(tiny_config), f"run_dir={run}", *SETTINGS, "train.steps=60", "optimizer.learning_rate=0.01"]
    train += ["checkpoint.every_steps=30", "eval.every_steps=60", "train.batch_size=16"]
    assert main(train) == 0
    first = {line["step"]: line["loss"] for line in lines(run) if "loss" in line}
    assert np.mean([first[step] for step in (58, 59, 60)]) < 0.8 * first[1]
    shutil.rmtree(run / "checkpoints/60")
    assert main(train) == 0
    assert {line["step"]: line["loss"] for line in lines(run) if "loss" in line} == first
    model = t5x_lite.load(run)
    vectors = embed(model, ["the quick fox", "a dog"])
    assert isinstance(vectors, np.ndarray)
    assert vectors.shape == (2, 32)
    states = embed(model, ["the quick fox"], pool="none")[0]
    np.testing.assert_allclose(states.mean(0), vectors[0], atol=1e-5)
    with pytest.raises(UserError, match=r"XLNet's \[CLS\] is the last one; take mean or max"):
        embed(model, ["a dog"], pool="cls")
    (cut,) = encode_texts(model, ["the quick fox jumps over the lazy dog"], 6)
    special = model.tokenizer.special
    assert cut["tokens"][-2:].tolist() == [special["<sep>"], special["<cls>"]]
    assert cut["token_types"].tolist() == [0, 0, 0, 0, 0, 2]
    scored = model.score(["the quick fox"])
    assert np.isfinite(scored).all()
    with pytest.raises(UserError, match="this model has a query stream and learns no masks"):
        fill_masks(model, "the <mask> fox")
    assert Classify(labels=("a", "b")).head(model.config.model).pool == "last"


def test_devices_that_share_a_row_are_refused(tiny_config: Path) -> None:
    for axis in ("pipeline", "context"):
        with pytest.raises(UserError, match=r"two streams need mesh\.pipeline=1 and mesh\.context=1"):
            configuration.load(tiny_config, [*SETTINGS, f"mesh.{axis}=2"])
