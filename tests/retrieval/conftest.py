"""A tiny run of the objective `retrieval`, its files, and its index."""

import json
from pathlib import Path

import pytest

from t5x_lite.cli import main

TEXT = "quick brown fox jumps over lazy dog seven wizards mix black opal quartz vain sphinx judge"
WORDS = TEXT.split()


def write_records(path: Path, records: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def passage(number: int) -> str:
    """The text of a passage: six words that no other of the first 64 passages has in this order."""
    start = number % len(WORDS)
    stride = 1 + 2 * (number // len(WORDS))
    return " ".join(WORDS[(start + k * stride) % len(WORDS)] for k in range(6))


def query(number: int) -> str:
    """The first and the second word of a passage, which answers it."""
    return " ".join(passage(number).split()[:2])


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with passages.jsonl (40 of them), train.jsonl (queries) and a config, retrieval.yaml."""
    folder = tmp_path_factory.mktemp("collection")
    passages: list[dict[str, object]] = [{"id": f"p{n}", "title": "", "text": passage(n)} for n in range(40)]
    write_records(folder / "passages.jsonl", passages)
    records: list[dict[str, object]] = []
    for number in range(40):
        negatives = [passage((number + 1) % 40)]
        records.append({"query": query(number), "positive": passage(number), "negatives": negatives})
    write_records(folder / "train.jsonl", records)
    return folder


@pytest.fixture(scope="session")
def retriever_config(collection: Path, tiny_config: Path) -> Path:
    """The file of a config that trains a tiny encoder from scratch in seconds."""
    settings = json.loads(tiny_config.read_text())
    settings["model"] = {"family": "encoder", "layers": 1, "embed": 32, "heads": 2, "outputs": []}
    settings["model"] |= {"positions": {"learned": {"length": 32}}, "output_transform": False, "output_bias": False}
    settings["tasks"] = "retrieval"
    settings["objective"] = {"retrieval": {"negatives": 1, "pool": "mean"}}
    files = str(collection / "train.jsonl")
    cache = settings["data"]["cache_dir"]
    settings["data"] = {"files": files, "validation_files": files, "field": "positive", "cache_dir": cache}
    settings["tokenizer"] = {"unigram": {"vocab": 300, "controls": ["[CLS]", "[SEP]", "[MASK]"]}}
    settings["optimizer"] = {"learning_rate": 0.01}
    settings["train"] |= {"steps": 60, "batch_size": 8, "seq_len": 32, "log_every_steps": 15}
    settings["checkpoint"] = {"every_steps": 30}
    settings["eval"] = {"every_steps": 30}
    path = collection / "retrieval.yaml"
    path.write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="session")
def retriever_run(retriever_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a complete run of `retriever_config`."""
    run_dir = tmp_path_factory.mktemp("retriever") / "run"
    assert main(["train", str(retriever_config), f"run_dir={run_dir}"]) == 0
    return run_dir


@pytest.fixture(scope="session")
def index_folder(retriever_run: Path, collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index of the passages, in shards of 16."""
    folder = tmp_path_factory.mktemp("index") / "index"
    arguments = ["index", retriever_run, collection / "passages.jsonl", folder, "--shard", 16]
    assert main([str(argument) for argument in arguments]) == 0
    return folder
