"""Runs for the tests of the train loop: trained by the command line, and their final weights."""

import sys
from pathlib import Path

import jax
import numpy as np

from t5x_lite.cli import main
from t5x_lite.parallel.mesh import make_mesh
from t5x_lite.run_dir import open_run


def train(config: Path, run_dir: Path, *overrides: str) -> int:
    """Train a run in this process and return the exit code of the command."""
    return main(["train", str(config), f"run_dir={run_dir}", *overrides])


def train_command(config: Path, run_dir: Path, *overrides: str) -> list[str]:
    """Return the command that trains a run in a process of its own."""
    return [sys.executable, "-m", "t5x_lite", "train", str(config), f"run_dir={run_dir}", *overrides]


def final_weights(run_dir: Path) -> list[np.ndarray]:
    """Return the weights of the last step of a complete run."""
    run = open_run(run_dir)
    step, weights, _ = run.trained_weights(make_mesh(run.config.mesh))
    assert step == run.config.train.steps
    return [np.asarray(leaf) for leaf in jax.tree.leaves(weights)]


def assert_same_weights(run_dir: Path, expected_run_dir: Path) -> None:
    """Check that two complete runs end with bitwise equal weights."""
    for weights, expected_weights in zip(final_weights(run_dir), final_weights(expected_run_dir), strict=True):
        np.testing.assert_array_equal(weights, expected_weights)
