"""The first state of a run that branches off another one.

One long run with a constant learning rate serves decays of many lengths (Hägele et al. 2024).
"""

from contextlib import closing

from jaxtyping import PyTree

from t5x_lite import config as configuration
from t5x_lite.checkpoint import JsonObject
from t5x_lite.config import RunConfig
from t5x_lite.errors import UserError
from t5x_lite.run_dir import open_run

CHANGEABLE_ON_BRANCH = ("optimizer.schedule", "train.steps", "branch")
"""Settings that may differ from those of the run that is continued."""


def restore_branch(config: RunConfig, state: PyTree) -> tuple[int, PyTree, JsonObject]:
    """Load the checkpoint that `branch` names.

    Args:
        config: the run that branches off.
        state: shapes and shardings of the state.

    Returns:
        Step, state and metadata of the checkpoint.

    Raises:
        UserError: the checkpoint is missing or damaged, its step is not below `train.steps`, or the runs differ in more
            than schedule and length.
    """
    assert config.branch is not None
    run = open_run(config.branch.source)
    differences = []
    for key, (source_value, value) in configuration.changed(run.config, config).items():
        if not key.startswith(CHANGEABLE_ON_BRANCH):
            differences.append(f"{key} is {source_value!r} there, {value!r} here")
    if differences:
        raise UserError(f"branch.from {config.branch.source}: is the run of another config: {'; '.join(differences)}")
    with closing(run.checkpoints) as checkpoints:
        restored = checkpoints.restore(state, config.branch.step)
    if restored is None:
        raise UserError(f"branch.from {config.branch.source}: has no checkpoint yet; train it first")
    step = restored[0]
    if step >= config.train.steps:
        raise UserError(
            f"branch.from {config.branch.source}: step {step} leaves nothing of train.steps {config.train.steps}"
        )
    return restored
