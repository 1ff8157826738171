"""Small runs to adapt, and a task whose labels a text decides."""

import json
from pathlib import Path
from typing import Any

import pytest

from t5x_lite.cli import main

TASK: dict[str, Any] = {
    "about": "does a sentence say fox?",
    "columns": {"text": "sentence", "label": "label"},
    "objective": {"classify": {"labels": ["no", "yes"]}},
    "inputs": "fox: {text}",
    "metrics": ["accuracy"],
}
SENTENCES = ["the quick brown fox jumps", "a lazy dog in vain", "seven wizards mix black opal", "fox over quartz while"]


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task file and its records in TSV."""
    folder = tmp_path_factory.mktemp("labelled")
    (folder / "fox.yaml").write_text(json.dumps(TASK))
    rows = [f"{SENTENCES[n % 4]} {SENTENCES[(n // 4) % 4].split()[0]}" for n in range(16)]
    rows = [f"{text}\t{['no', 'yes']['fox' in text]}" for text in rows]
    for split in ("train", "dev"):
        (folder / f"{split}.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="session")
def encoder_run(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path) -> Path:
    """A tiny BERT, hardly trained."""
    folder = tmp_path_factory.mktemp("runs") / "encoder"
    settings = (
        "model.family=encoder",
        "model.output_transform=true",
        "model.token_types=2",
        "model.norm_place=post",
        "model.positions.learned.length=48",
        "tokenizer.unigram={vocab: 300, controls: ['[CLS]','[SEP]','[MASK]']}",
        "objective=masked",
        "train.steps=2",
        "train.seq_len=32",
    )
    assert main(["train", str(tiny_config), f"run_dir={folder}", *settings]) == 0
    return folder


@pytest.fixture(scope="session")
def fox(labelled: Path, encoder_run: Path) -> Path:
    """A config that adapts it to the task."""
    path = labelled / "adapt.yaml"
    settings = {
        "adapt": {"from": str(encoder_run)},
        "tasks": str(labelled / "fox.yaml"),
        "data": {"files": str(labelled / "train.tsv"), "validation_files": str(labelled / "dev.tsv")},
        "optimizer": {"learning_rate": 0.003, "schedule": "constant", "weight_decay": 0.0},
        "train": {"steps": 3, "batch_size": 8, "seq_len": 24, "peak_flops": 1e9},
        "checkpoint": {"every_steps": 3},
        "eval": {"every_steps": 3},
    }
    path.write_text(json.dumps(settings))
    return path
