"""The commands of docs/guides/first_run.md for people who come with a corpus, weights, an account or a data set."""

import json
import os
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from t5x_lite.data.byte_tokenizer import Bytes
from t5x_lite.data.token_files.megatron import write_megatron
from tests.conftest import Shell, lines

pytestmark = pytest.mark.slow
TEXTS = [f"document {number} about foxes and dogs, {number * 37} of them" for number in range(80)]


def check_trains(t5x_lite: Shell, run: Path, *words: object, **variables: str) -> str:
    """Train three steps; return what was printed."""
    settings = ("train.steps=3", f"run_dir={run}", f"data.cache_dir={run}-cache", "data.validation_fraction=0.2")
    done = t5x_lite("train", *words, *settings, env=os.environ | variables)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in lines(run)][-1] == 3
    return done.stderr


def test_with_a_corpus_of_megatron(t5x_lite: Shell, tiny_config: Path, tmp_path: Path) -> None:
    documents = [Bytes().encode(text) for text in TEXTS]
    write_megatron(tmp_path / "corpus_text_document", iter(documents), 258)
    Bytes().save(tmp_path)
    tokenizer = f"tokenizer={{file: {{path: {tmp_path}/tokenizer.json}}}}"
    files = (f"data.files={tmp_path}/corpus_text_document.bin", "data.format=megatron")
    output = check_trains(t5x_lite, tmp_path / "run", tiny_config, *files, tokenizer)
    tokens = sum(map(len, documents)) + len(documents)  # each ends with EOS
    (line,) = [line for line in output.splitlines() if line.startswith("corpus: ") and " training and " in line]
    counts = [int(word.replace(",", "")) for word in line.split() if word[0].isdigit()]
    assert counts == [counts[0], tokens - counts[0], len(documents)]


def test_with_an_account_of_weights_and_biases(t5x_lite: Shell, tiny_config: Path, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    check_trains(t5x_lite, tmp_path / "run", tiny_config, "train.trackers=[wandb]", WANDB_MODE="offline")
    assert list((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))


def test_with_a_folder_of_llamas_weights(t5x_lite: Shell, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.LlamaConfig(vocab_size=259, max_position_embeddings=64, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    Bytes().save(tmp_path / "llama")
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    imported = t5x_lite("import", "hf", tmp_path / "llama", tmp_path / "imported")
    assert imported.returncode == 0, imported.stderr
    words = (f"adapt.from={tmp_path}/imported", "adapt.method=lora", f"data.files={tmp_path}/text.jsonl")
    small = ("model.vocab=259", "model.layers=2", "model.embed=16", "model.heads=2", "model.mlp=24", "train.seq_len=32")
    steps = ("train.batch_size=2", "optimizer.warmup_steps=1")
    check_trains(t5x_lite, tmp_path / "run", "llama2/7b", *words, *small, *steps)


def test_with_a_data_set(t5x_lite: Shell, tiny_config: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the extra hfdata is not installed")
    (tmp_path / "data").mkdir()
    parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "data/train.parquet")
    check_trains(t5x_lite, tmp_path / "run", tiny_config, f"data.files=hf://{tmp_path}/data#train")
