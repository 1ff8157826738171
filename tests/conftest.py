"""Fixtures shared by several test files."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook

from tests.shape_checks import check

if os.environ.get("T5X_LITE_SHAPE_CHECKS"):  # they nearly double the time of a test: see test_shape_checks.py
    install_import_hook("t5x_lite", f"{check.__module__}.{check.__name__}")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# All tests, and the processes that they start, share one compilation cache.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "t5x_lite_test_compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Most of the time is spent on compilation, and tiny shapes do not need fast code: this halves the time of the tests.
# `tools/test.sh --all` sets XLA_FLAGS, perhaps to an empty string, to test what users run.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets. Tests that need it are skipped if it does not exist."""
    folder = Path(os.environ.get("T5X_LITE_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data: set T5X_LITE_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 60 documents, each a file with 12 sentences of 9 words."""
    folder = tmp_path_factory.mktemp("prose")
    text = "the quick brown fox jumps over a lazy dog while seven wizards mix black opal quartz in vain"
    words = text.split()
    for document in range(60):
        sentences = []
        for sentence in range(12):
            start = document * 7 + sentence * 3
            sentences.append(" ".join(words[(start + k) % len(words)] for k in range(9)))
        (folder / f"{document:02d}.txt").write_text(".\n".join(sentences) + ".\n")
    return folder


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory, prose: Path) -> Path:
    """The file of a config that trains in seconds."""
    folder = tmp_path_factory.mktemp("tiny")
    path = folder / "tiny.yaml"
    settings: dict[str, Any] = {
        "model": {"layers": 2, "embed": 32, "heads": 2, "positions": {"learned": {"length": 32}}},
        "data": {"files": str(prose / "*.txt"), "validation_fraction": 0.2, "cache_dir": str(folder / "cache")},
        "tokenizer": {"unigram": {"vocab": 300}},
        "optimizer": {"learning_rate": 0.003},
        "train": {"steps": 12, "batch_size": 4, "seq_len": 16, "peak_flops": 1e9},
        "checkpoint": {"every_steps": 4},
        "eval": {"every_steps": 6},
    }
    path.write_text(json.dumps(settings))
    return path


Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def t5x_lite() -> Shell:
    """A function that runs the command line in a new process, as a user does."""

    def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "t5x_lite", *map(str, arguments)]
        options = {"cwd": REPOSITORY, **options}
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **options)

    return run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path, t5x_lite: Shell) -> Path:
    """The run directory of a complete run of `tiny_config`."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    done = t5x_lite("train", tiny_config, f"run_dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def lines(run: Path) -> list[dict[str, Any]]:
    """Return the records of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def write_task(path: Path) -> None:
    """Write the file of a task whose records have a `text` and the `label` no or yes."""
    task = {
        "about": "a test",
        "columns": {"text": "text", "label": "label"},
        "objective": {"classify": {"labels": ["no", "yes"]}},
        "inputs": "{text}",
        "metrics": ["accuracy"],
    }
    path.write_text(json.dumps(task))
