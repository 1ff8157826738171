"""A shipped config of each family, made small, trains: its loss falls below that of the frequencies of tokens."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import t5x_lite
from t5x_lite.cli import main
from t5x_lite.run_data import open_tokenizer
from tests.conftest import REPOSITORY, lines

pytestmark = pytest.mark.slow

BYTES = ("tokenizer.byte_bpe.vocab=300",)
UNIGRAM = ("tokenizer.unigram.vocab=300",)
BPE = ("tokenizer.bpe.vocab=300",)
GROUPED = ("model.kv_heads=2", "model.head_dim=8")
MULTI_QUERY = ("model.kv_heads=1", "model.head_dim=8")
EXPERTS = "model.feedforward.moe"
LOCAL = "{attention: {local: {window: 8}}, positions: {rotary: {theta: 10000.0}}}"
MODERNBERT = f"model.pattern=[{{norm: false}}, {LOCAL}, {LOCAL}, {{}}]"
RECURRENT = "{mixer: rg_lru}"
DELTA = "{mixer: {gated_deltanet: {heads: 2, key_dim: 8, value_dim: 16, chunk: 16}}}"
LONGER = ("train.steps=400", "optimizer.learning_rate=0.003")
"""Masked words, of which few tokens have a loss, are learnt later than next ones."""
FAMILIES = {
    "bart/base": BYTES,
    "modernbert/base": (*BYTES, "model.layers=4", MODERNBERT, *LONGER),
    "ettin/decoder_17m": (*BYTES, "model.layers=4", MODERNBERT),
    "neobert/250m": ("tokenizer.wordpiece.vocab=100", *LONGER),
    "bloom/560m": BYTES,
    "falcon/7b": (*BYTES, *MULTI_QUERY),
    "opt/350m": (*BYTES, "model.embedding=16", "train.steps=200"),
    "palm/8b": (*UNIGRAM, *MULTI_QUERY),
    "gopher/44m": UNIGRAM,
    "transformer_xl/enwik8_12l": ("model.pattern=[{mixer: {attention: {memory: 32}}}]",),
    "llama3/3.2_1b": (*BYTES, *GROUPED),
    "smollm3/3b": (*BYTES, *GROUPED, "model.layers=4"),
    "qwen3/0.6b": (*BYTES, *GROUPED),
    "qwen3/30b_a3b": (*BYTES, *GROUPED, f"{EXPERTS}.experts=8", f"{EXPERTS}.router.top_k.k=2"),
    "gemma2/2b": (*BPE, *GROUPED),
    "gemma3/1b": (*BPE, *MULTI_QUERY, f"model.pattern=[{LOCAL}, {LOCAL}, {{}}]", "model.layers=3"),
    "recurrentgemma/2b": (
        *BPE,
        f"model.pattern=[{RECURRENT}, {RECURRENT}, {{attention: {{local: {{window: 8}}}}}}]",
        "model.layers=3",
    ),
    "mamba2/130m": (*BYTES, "model.pattern=[{mixer: {mamba2: {state: 8, head_dim: 8, chunk: 16}}}]"),
    "gated_deltanet/h1_1.3b": (*BYTES, f"model.pattern=[{DELTA}, {{attention: {{local: {{window: 8}}}}}}]"),
}
"""Overrides of one config of each family that no other test trains."""
SIZES = (
    "model.vocab=null",
    "model.layers=2",
    "model.embed=32",
    "model.heads=4",
    "model.mlp=48",
    "model.dropout=0",
    "model.compute=float32",
    "model.remat=none",
    "train.batch_size=16",
    "train.seq_len=32",
    "train.steps=100",
    "optimizer.learning_rate=0.01",
    "optimizer.warmup_steps=10",
    "checkpoint.every_steps=100",
    "eval.every_steps=100",
    "eval.batches=1",
)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_small_one_learns_more_than_the_frequencies_of_tokens(name: str, prose: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = str(REPOSITORY / f"configs/{name}.yaml")
    data = (f"data.files={prose}/*.txt", f"data.cache_dir={tmp_path}/cache", "data.validation_fraction=0.2")
    assert main(["train", config, f"run_dir={run}", *SIZES, *FAMILIES[name], *data]) == 0
    tokenizer = open_tokenizer(t5x_lite.config.load(run / "config.yaml"))
    text = "".join(path.read_text() for path in sorted(prose.glob("*.txt")))
    counts = Counter(tokenizer.encode(text).tolist())
    total = sum(counts.values())
    entropy = -sum(count / total * math.log(count / total) for count in counts.values())
    losses = [line["loss"] for line in lines(run) if "loss" in line]
    assert np.mean(losses[-5:]) < 0.8 * entropy
