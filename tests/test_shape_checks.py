"""Shapes in signatures hold while models, objectives and the train step run (see tests/shape_checks.py).

The checks nearly double the time of a test, so that some test files run once more with them, in a process of their own.
"""

import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

FAST_FILES = (
    "tests/checked_shapes.py",
    "tests/objectives/test_causal.py",
    "tests/train/test_step.py",
)
SLOW_FILES = ("tests/models", "tests/objectives", "tests/decode", "tests/adapt", "tests/evaluate", "tests/reference")


@pytest.mark.slow
@pytest.mark.parametrize("files", [FAST_FILES, SLOW_FILES], ids=["first", "second"])
def test_shapes_hold_at_run_time(files: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *files]
    environment = {**os.environ, "T5X_LITE_SHAPE_CHECKS": "1"}
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
