"""Tasks learnt and evaluated by `train`: as text, by a head, with soft prompts, and on a mesh."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import t5x_lite
from t5x_lite.cli import main
from t5x_lite.data.records import Examples, Records
from t5x_lite.decode.sampling import Sampling
from t5x_lite.objectives import Task
from t5x_lite.objectives.supervised import Coder
from t5x_lite.task import find
from tests.adapt.conftest import TASK, labelled  # noqa: F401
from tests.conftest import REPOSITORY, lines

FAMILIES = {
    "t5": ("model.family=encoder_decoder", "model.positions=relative", "model.norm=rmsnorm", "model.bias=false"),
    "decoder": ("model.positions=rotary",),
}


@pytest.fixture(scope="module")
def settings(labelled: Path, tiny_config: Path) -> list[str]:  # noqa: F811
    """Overrides that turn the tiny config to the task of foxes."""
    task = labelled / "short.yaml"
    task.write_text(json.dumps({**TASK, "target_len": 4}))
    own = {
        "tasks": task,
        "data.files": labelled / "train.tsv",
        "data.validation_files": labelled / "dev.tsv",
        "tokenizer.unigram.vocab": 300,
        "optimizer.learning_rate": 0.01,
        "train.batch_size": 8,
        "train.seq_len": 32,
        "eval.every_steps": 100,
    }
    del tiny_config
    return [f"{key}={value}" for key, value in own.items()]


def scored(run: Path) -> tuple[float, list[dict[str, object]]]:
    """The accuracy of the last line of metrics.jsonl, and the predictions beside it."""
    last = lines(run)[-1]
    written = (run / "eval" / str(last["step"]) / "short.jsonl").read_text()
    return last["eval/short/accuracy"], [json.loads(line) for line in written.splitlines()]
