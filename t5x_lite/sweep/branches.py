"""Runs that share the stable phase of one long run (Hägele et al. 2024, §3).

Under a schedule of warm-up, stable phase and decay, runs that differ only in their number of steps are equal until
their decay begins. One trunk computes the stable phase of the longest of them, and keeps a checkpoint where each decay
begins. Every run is then a branch that computes only its decay.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from t5x_lite import config as configuration
from t5x_lite.errors import UserError
from t5x_lite.storage import join
from t5x_lite.sweep.config import Sweep
from t5x_lite.sweep.planned_run import PlannedRun, job_name, override_words


def share_stable_phases(sweep: Sweep, runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Return trunks, and the runs as branches of them.

    Raises:
        UserError: no runs differ only in train.steps, or the schedule has no stable phase to share.
    """
    groups = _group_by_other_settings(runs)
    if all(len(group) == 1 for group in groups):
        raise UserError("branches: no two runs of the sweep differ in train.steps alone (batch by rule? derived keys?)")
    shared = []
    for name, group in zip(_trunk_names(groups), groups, strict=True):
        decay_starts = _decay_starts(group)
        trunk = _make_trunk(sweep, name, group, decay_starts)
        shared.append(trunk)
        for run in group:
            shared.append(_make_branch(run, trunk, decay_starts[run.name]))
    return shared


def _group_by_other_settings(runs: Sequence[PlannedRun]) -> list[list[PlannedRun]]:
    groups: dict[str, list[PlannedRun]] = {}
    for run in runs:
        other_settings = {**run.overrides, "train.steps": 0}
        groups.setdefault(f"{run.config} {other_settings}", []).append(run)
    return list(groups.values())


def _longest(group: Sequence[PlannedRun]) -> PlannedRun:
    return max(group, key=lambda run: run.steps)


def _decay_starts(group: Sequence[PlannedRun]) -> dict[str, int]:
    """Return the step after which each run's learning rate decays, by the run's name."""
    base = group[0].config
    config = configuration.load(base, override_words(_longest(group).overrides))
    if config.data.schedule:
        raise UserError(f"branches: stages of data.schedule would begin elsewhere in a trunk; remove it from {base}")
    decay_share = config.optimizer.schedule.decay_share
    if decay_share is None:
        raise UserError(f"branches: need optimizer.schedule wsd, whose stable phase they share; set it in {base}")
    starts = {}
    for run in group:
        step = math.floor((1 - decay_share) * run.steps)
        if step <= config.optimizer.warmup_steps:
            raise UserError(f"run {run.name}: its decay begins at step {step}, before its warm-up is over")
        starts[run.name] = step
    return starts


def _trunk_names(groups: Sequence[Sequence[PlannedRun]]) -> list[str]:
    """Return the name of each group's trunk: what the names of its runs share, which more runs do not change."""
    shared = []
    for group in groups:
        parts = zip(*(run.name.split("-") for run in group), strict=False)
        shared.append("-".join(of_runs[0] for of_runs in parts if len(set(of_runs)) == 1))
    names = []
    for common, group in zip(shared, groups, strict=True):
        name = common
        if shared.count(common) > 1:
            name = min(group, key=lambda run: run.steps).name
        names.append(f"{name}-trunk".lstrip("-"))
    return names


def _make_trunk(sweep: Sweep, name: str, group: Sequence[PlannedRun], decay_starts: dict[str, int]) -> PlannedRun:
    """Return the stable phase of the longest run."""
    longest = _longest(group)
    steps = decay_starts[longest.name]
    overrides = {
        **longest.overrides,
        "train.steps": steps,
        "optimizer.schedule": "constant",
        "checkpoint.keep_steps": sorted(set(decay_starts.values())),
    }
    return replace(
        longest,
        name=name,
        run_dir=join(sweep.runs_folder, job_name(sweep, name)),
        overrides=overrides,
        steps=steps,
        computed_steps=steps,
        tokens=longest.tokens * steps / longest.steps,
        flops=longest.flops * steps / longest.steps,
        trunk=True,
    )


def _make_branch(run: PlannedRun, trunk: PlannedRun, decay_start: int) -> PlannedRun:
    overrides = {**run.overrides, "branch.from": trunk.run_dir, "branch.step": decay_start}
    return replace(run, overrides=overrides, computed_steps=run.steps - decay_start, after=trunk.name)
