"""Going on from another run's checkpoint: one long constant run serves decays of many lengths (Hägele et al. 2024)."""

from contextlib import closing
from pathlib import Path
from typing import Any

from t5x_lite import config as configuration
from t5x_lite.config import RunConfig
from t5x_lite.errors import UserError
from t5x_lite.run_dir import open_run

MAY_DIFFER = ("optimizer.schedule", "train.steps", "branch")
"""What the rest of a run may do otherwise than the run that it branches off."""


def restore_branch(config: RunConfig, state: Any) -> tuple[int, Any, dict[str, Any]]:
    """Step, state and metadata of the checkpoint that `branch` names; `state` says shapes and shardings.

    Raises:
        UserError: it is not there or not whole, it lies beyond this run's steps, or the runs differ in more than
            schedule and length.
    """
    assert config.branch is not None
    run = open_run(Path(config.branch.source))
    differences = [
        f"{key} is {old!r} there, {new!r} here"
        for key, (old, new) in configuration.changed(run.config, config).items()
        if not key.startswith(MAY_DIFFER)
    ]
    if differences:
        raise UserError(f"branch.from {run.folder}: is the run of another config: {'; '.join(differences)}")
    with closing(run.checkpoints) as theirs:
        found = theirs.restore(state, config.branch.step)
    if found is None:
        raise UserError(f"branch.from {run.folder}: has no checkpoint yet; train it first")
    if found[0] >= config.train.steps:
        raise UserError(f"branch.from {run.folder}: step {found[0]} leaves nothing of train.steps {config.train.steps}")
    return found
