"""Configs of DeepSeek and gpt-oss, made small, train: the loss falls below that of the frequencies of tokens."""

import math
from collections import Counter
from pathlib import Path

import pytest

import t5x_lite
from t5x_lite.cli import main
from tests.conftest import REPOSITORY, lines

pytestmark = pytest.mark.slow

LATENT = "{latent_attention: {rank: 16, query_rank: 16, rotary: 4, value: 8}}"
SMALL_DEEPSEEK = (
    "model.layers=3",
    f"model.first=[{{mixer: {LATENT}, feedforward: dense}}]",
    f"model.pattern=[{{mixer: {LATENT}}}]",
    "model.heads=4",
    "model.feedforward.moe.shared=1",
)
SMALL = {
    "deepseek_v2/236b": (*SMALL_DEEPSEEK, "model.feedforward.moe.router.top_k.scale=1"),
    "deepseek_v3/671b": SMALL_DEEPSEEK,
    "gpt_oss/20b": ("model.layers=2", "model.heads=4", "model.kv_heads=2"),
}
SIZES = (
    "model.vocab=null",
    "model.embed=32",
    "model.head_dim=8",
    "model.mlp=48",
    "model.feedforward.moe.experts=8",
    "model.feedforward.moe.mlp=16",
    "model.compute=float32",
    "model.remat=none",
    "tokenizer=bytes",
    "train.batch_size=8",
    "train.seq_len=64",
    "train.steps=60",
    "optimizer.learning_rate=0.01",
    "optimizer.warmup_steps=5",
    "checkpoint.every_steps=60",
    "eval.every_steps=60",
    "eval.batches=2",
)
GROUPS = ("k=2", "groups=4", "chosen_groups=2")


@pytest.mark.parametrize("name", SMALL)
def test_a_small_one_learns_more_than_the_frequencies_of_bytes(name: str, prose: Path, tmp_path: Path) -> None:
    router = "deepseek" if "v3" in name else "top_k"
    routing = GROUPS[:1] if "gpt" in name else GROUPS
    overrides = [f"model.feedforward.moe.router.{router}.{setting}" for setting in routing]
    data = (f"data.files={prose}/*.txt", f"data.cache_dir={tmp_path}/cache", "data.validation_fraction=0.2")
    run = tmp_path / "run"
    config = str(REPOSITORY / f"configs/{name}.yaml")
    assert main(["train", config, f"run_dir={run}", *SIZES, *SMALL[name], *overrides, *data]) == 0
    counts = Counter("".join(path.read_text() for path in prose.glob("*.txt")))
    total = sum(counts.values())
    entropy = -sum(count / total * math.log(count / total) for count in counts.values())
    losses = [record["loss"] for record in lines(run) if "loss" in record]
    assert losses[-1] < 0.8 * entropy
    model = t5x_lite.load(run)
    if router == "deepseek":
        biases = model.params["decoder"]["stack"]["layers"]["0"]["feedforward"]["bias"]
        assert float(abs(biases).max()) == pytest.approx(0.001 * 60, rel=1)  # moves of 0.001, up or down
        assert float(abs(biases).max()) > 0
