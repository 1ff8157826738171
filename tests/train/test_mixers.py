"""Runs with sequence mixers other than attention: they train, resume exactly, are scored and generate."""

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import pytest

import t5x_lite
from t5x_lite.cli import main
from t5x_lite.run_data import open_tokenizer
from tests.conftest import lines

MAMBA = "{mamba2: {head_dim: 8, state: 8, chunk: 8}}"
DELTA = "{gated_deltanet: {key_dim: 8, chunk: 8}}"
PATTERNS = {
    "all": "[{mixer: lstm},{mixer: gru},{mixer: rnn},{mixer: rg_lru},{mixer: "
    f"{MAMBA}}},{{mixer: {DELTA}}},{{}}]",
    "lstm": "[{mixer: {lstm: {hidden: [48, 32]}}}]",
    "gru": "[{mixer: gru}]",
    "rnn": "[{mixer: rnn}]",
    "rg_lru": "[{mixer: rg_lru},{mixer: rg_lru},{attention: {local: {window: 8}}}]",
    "mamba2": f"[{{mixer: {MAMBA}}}]",
    "gated_deltanet": f"[{{mixer: {DELTA}}},{{mixer: {DELTA}}},{{}}]",
    "carried": f"[{{mixer: lstm}},{{mixer: {MAMBA}}},{{mixer: {DELTA}}}]",
    "memory": "[{mixer: {attention: {memory: 24}}}]",
}
BARE = (
    "model.norm=none",
    "model.residual=false",
    "model.feedforward=none",
    "model.positions=none",
    "model.init={fan_in: {embedding_deviation: 0.3}}",
)
TRAINED = {"lstm": BARE, "rg_lru": ("model.positions=rotary",), "gated_deltanet": ("model.positions=rotary",)}


@pytest.mark.slow
@pytest.mark.parametrize("name", PATTERNS)
def test_a_run_resumes_to_the_bit_is_scored_and_generates(
    name: str, tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    layers = {"all": 7, "rg_lru": 3, "gated_deltanet": 3, "carried": 3}.get(name, 2)
    overrides = [f"model.pattern={PATTERNS[name]}", f"model.layers={layers}", "train.steps=2"]
    if name == "carried":
        overrides += ["data.order=consecutive", "optimizer.method={nt_asgd: {interval: 1, patience: 1}}"]
    if name == "memory":
        overrides += ["data.order=consecutive", "model.positions=transformer_xl"]
    train = ["train", str(tiny_config), f"run_dir={run}", *overrides, "checkpoint.every_steps=1", "eval.every_steps=1"]
    assert main(train) == 0
    first = {line["step"]: line["loss"] for line in lines(run) if "loss" in line}
    shutil.rmtree(run / "checkpoints/2")
    assert main(train) == 0
    assert "resumed from step 1" in capsys.readouterr().err
    assert {line["step"]: line["loss"] for line in lines(run) if "loss" in line} == first
    assert main(["eval", str(run), "--json"]) == 0
    assert math.isfinite(json.loads(capsys.readouterr().out)["eval/loss"])
    model = t5x_lite.load(run)
    greedy = model.generate(["the quick", "a lazy dog"], tokens=4, temperature=0.0)
    assert greedy == [model.generate([prompt], tokens=4, temperature=0.0)[0] for prompt in ("the quick", "a lazy dog")]
    (beams,) = model.generate(["the quick"], tokens=4, beams=2)
    assert beams


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_the_loss_falls_below_the_entropy_of_single_tokens(name: str, tiny_config: Path, tmp_path: Path) -> None:
    """The entropy of the tokens' frequencies is the loss of the best model without a memory."""
    run = tmp_path / "run"
    layers = {"rg_lru": 3, "gated_deltanet": 3}.get(name, 1)
    overrides = [f"model.pattern={PATTERNS[name]}", f"model.layers={layers}", *TRAINED[name]]
    settings = ["train.steps=150", "optimizer.learning_rate=0.01", "eval.every_steps=150", "train.seq_len=32"]
    assert main(["train", str(tiny_config), f"run_dir={run}", *overrides, *settings]) == 0
    text = "".join(path.read_text() for path in sorted(tiny_config.parent.parent.glob("prose*/*.txt")))
    tokenizer = open_tokenizer(t5x_lite.config.load(run / "config.yaml"))
    counts = Counter(tokenizer.encode(text).tolist())
    total = sum(counts.values())
    entropy = -sum(count / total * math.log(count / total) for count in counts.values())
    last = [line for line in lines(run) if "eval/loss" in line][-1]
    assert last["eval/loss"] < 0.7 * entropy
