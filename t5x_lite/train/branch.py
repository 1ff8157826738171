"""The first state of a run that branches off another one.

One long run with a constant learning rate serves decays of many lengths (Hägele et al. 2024).
"""

from contextlib import closing
from dataclasses import replace

from jaxtyping import PyTree

from t5x_lite import config as configuration
from t5x_lite.checkpoint import JsonObject
from t5x_lite.config import BranchConfig, RunConfig
from t5x_lite.data.stages import Stage
from t5x_lite.errors import UserError
from t5x_lite.run_dir import open_run

CHANGEABLE_ON_BRANCH = ("optimizer.schedule", "train.steps", "train.allow_changed_config", "branch", "data.schedule")
"""Settings that may differ from those of the run that is continued; see `_check_stages` for `data.schedule`."""


def check_branch(config: RunConfig, branch: BranchConfig) -> None:
    """Refuse a branch that its source cannot have, before its data are opened.

    Raises:
        UserError: the runs differ in more than schedule and length, `branch.step` is not below `train.steps`, or the
            source has no such checkpoint.
    """
    run = open_run(branch.source)
    _check_config(config, branch, run.config)
    if branch.step is not None:
        _check_step(config, branch, branch.step)
    run.check_checkpoint("branch.from", branch.step)


def restore_branch(config: RunConfig, branch: BranchConfig, state: PyTree) -> tuple[int, PyTree, JsonObject]:
    """Load the checkpoint that `branch` names.

    Args:
        config: the run that branches off.
        branch: where it does.
        state: shapes and shardings of the state.

    Returns:
        Step, state and metadata of the checkpoint.

    Raises:
        UserError: the checkpoint is missing or damaged, its step is not below `train.steps`, or is not named although
            the source goes on; the runs differ in more than schedule and length.
    """
    run = open_run(branch.source)
    _check_config(config, branch, run.config)
    with closing(run.checkpoints) as checkpoints:
        restored = checkpoints.restore(state, branch.step)
    if restored is None:
        raise UserError(f"branch.from {branch.source}: has no checkpoint yet; train it first")
    step = restored[0]
    if branch.step is None and step < run.config.train.steps:
        raise UserError(
            f"branch.from {branch.source}: is at step {step} of {run.config.train.steps}, and its newest "
            "checkpoint may be another one when this run starts again; name one by branch.step"
        )
    _check_step(config, branch, step)
    _check_stages(config, branch, run.config, step)
    return restored


def _check_config(config: RunConfig, branch: BranchConfig, source: RunConfig) -> None:
    """Check that two runs differ in no more than schedule and length, or raise UserError."""
    differences = configuration.describe_differences(source, config, CHANGEABLE_ON_BRANCH)
    if differences:
        raise UserError(f"branch.from {branch.source}: is the run of another config: {differences}")


def _check_step(config: RunConfig, branch: BranchConfig, step: int) -> None:
    """Check that a branch off a step has steps of its own, or raise UserError."""
    if step >= config.train.steps:
        raise UserError(f"branch.from {branch.source}: step {step} leaves nothing of train.steps {config.train.steps}")


def _check_stages(config: RunConfig, branch: BranchConfig, source: RunConfig, step: int) -> None:
    """Check that both runs have the same batches until a step.

    An epoch in which the length of the rows changes has another order from its beginning (see `data.source_order`), so
    that a branch may change the shares of the sources but not the lengths.

    Raises:
        UserError: they do not.
    """
    past = [_describe_stage(stage) for stage in config.stages if stage.first_step < step]
    source_past = [_describe_stage(stage) for stage in source.stages if stage.first_step < step]
    subject = f"branch.from {branch.source}: data.schedule"
    if past != source_past:
        raise UserError(
            f"{subject} differs from that of the source before step {step}, where this run branches off; let the "
            f"first stages agree, by after_steps, and the new ones begin after step {step} or later"
        )
    lengths = sorted({stage.seq_len for stage in (*config.stages, *source.stages)})
    stages = [_describe_stage(stage) for stage in config.stages]
    source_stages = [_describe_stage(stage) for stage in source.stages]
    if len(lengths) > 1 and stages != source_stages:
        raise UserError(
            f"{subject} has other stages than the source and lengths {' and '.join(map(str, lengths))}: a branch may "
            "change the weights of stages of one seq_len; for another seq_len start a run with `adapt`"
        )


def _describe_stage(stage: Stage) -> Stage:
    """Return a stage without its name, which its batches do not depend on."""
    return replace(stage, name="")
