"""Fixtures of the tests of training."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def copy_of_tiny_run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the run directory of `tiny_run` that a test may change."""
    run_dir = tmp_path / "copy"
    shutil.copytree(tiny_run, run_dir)
    return run_dir
