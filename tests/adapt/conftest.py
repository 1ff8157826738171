"""Runs to adapt, a task whose labels a word of the text decides, and runs adapted to it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from t5x_lite import config as configuration
from t5x_lite.cli import main
from t5x_lite.config import RunConfig
from t5x_lite.run_dir import open_run, with_vocab

FOX_TASK: dict[str, object] = {
    "about": "does a sentence say fox?",
    "columns": {"text": "sentence", "label": "label"},
    "objective": {"classify": {"labels": ["no", "yes"]}},
    "inputs": "fox: {text}",
    "metrics": ["accuracy"],
}
SENTENCES = ("the quick brown fox jumps", "a lazy dog in vain", "seven wizards mix black opal", "fox over quartz while")
RECORDS = 16

METHODS: dict[str, dict[str, object]] = {
    "full": {},
    "head": {},
    "features": {"layers": 2},
    "top": {"layers": 1},
    "bitfit": {},
    "houlsby": {"width": 4},
    "pfeiffer": {"width": 4},
    "lora": {"rank": 2},
    "ia3": {},
    "prompt": {"length": 3},
    "prefix": {"length": 3},
    "unfreeze": {},
}
"""Settings of each adaptation method but `upcycle`, `fusion` and `lottery`, which need other runs."""

MethodConfig: TypeAlias = Callable[..., RunConfig]
AdaptedRun: TypeAlias = Callable[[str], Path]


def method_override(method: str) -> str:
    """Return the override of a config that selects a method with its settings."""
    return f"adapt.method={json.dumps({method: METHODS[method]})}"


@pytest.fixture(scope="session")
def fox_task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the task `fox` (does a sentence say fox?) and its records in TSV."""
    folder = tmp_path_factory.mktemp("fox_task")
    (folder / "fox.yaml").write_text(json.dumps(FOX_TASK))
    lines = ["sentence\tlabel"]
    for number in range(RECORDS):
        first_word, *_ = SENTENCES[(number // 4) % 4].split()
        text = f"{SENTENCES[number % 4]} {first_word}"
        label = "yes" if "fox" in text else "no"
        lines.append(f"{text}\t{label}")
    for split in ("train", "dev"):
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def encoder_run(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path) -> Path:
    """The run directory of a tiny BERT that has trained for two steps."""
    run_dir = tmp_path_factory.mktemp("runs") / "encoder"
    overrides = (
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
    assert main(["train", str(tiny_config), f"run_dir={run_dir}", *overrides]) == 0
    return run_dir


@pytest.fixture(scope="session")
def fox_config(fox_task: Path, encoder_run: Path) -> Path:
    """The file of a config that adapts `encoder_run` to the task."""
    path = fox_task / "adapt.yaml"
    settings = {
        "adapt": {"from": str(encoder_run)},
        "tasks": str(fox_task / "fox.yaml"),
        "data": {"files": str(fox_task / "train.tsv"), "validation_files": str(fox_task / "dev.tsv")},
        "optimizer": {"learning_rate": 0.003, "schedule": "constant", "weight_decay": 0.0},
        "train": {"steps": 3, "batch_size": 8, "seq_len": 24, "peak_flops": 1e9},
        "checkpoint": {"every_steps": 3},
        "eval": {"every_steps": 3},
    }
    path.write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="session")
def method_config(fox_config: Path, encoder_run: Path) -> MethodConfig:
    """A function that loads `fox_config` with an override that selects a method."""

    def load(override: str) -> RunConfig:
        config = configuration.load(fox_config, [override])
        return with_vocab(config, open_run(encoder_run).tokenizer)

    return load


@pytest.fixture(scope="session")
def adapted_run(fox_config: Path, tmp_path_factory: pytest.TempPathFactory) -> AdaptedRun:
    """A function that returns the run directory of a method, and trains the run when it is first requested."""
    folder = tmp_path_factory.mktemp("adapted")

    def run_dir_of(method: str) -> Path:
        run_dir = folder / method
        if not run_dir.exists():
            assert main(["train", str(fox_config), f"run_dir={run_dir}", method_override(method)]) == 0
        return run_dir

    return run_dir_of
