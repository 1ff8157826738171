"""Points from the runs of a sweep, by its plan, its status log and the runs' metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from t5x_lite.errors import UserError
from t5x_lite.evaluate.curves import metric_series, smooth
from t5x_lite.laws.training_curves import TrainingCurve
from t5x_lite.metrics_file import is_number
from t5x_lite.storage import is_remote
from t5x_lite.sweep.planned_run import PlannedRun, read_plan
from t5x_lite.sweep.points import SweepPoints, build_points
from t5x_lite.sweep.run_files import read_steps
from t5x_lite.sweep.status_log import read_statuses


def read_runs(folder: Path) -> SweepPoints:
    """Read the finished runs of a sweep.

    A run's loss is its last validation loss. Its training curve is the smoothed training loss; branches have none of
    their own, their trunk has it.

    Raises:
        UserError: the folder is not that of a sweep, or no run is complete.
    """
    plan = read_plan(folder)
    statuses = read_statuses(folder / "sweep.jsonl")
    finished = {}
    curves = []
    left_out = {}
    for run in plan.runs:
        name = run.name
        metrics = read_steps(_run_dir(folder, run))
        problem = _find_problem(run, statuses.get(name, {}), metrics)
        if problem is None and not is_number(metrics[-1].get("eval/loss")):
            problem = "its objective has no validation loss"
        if problem is not None:
            left_out[name] = problem
            continue
        if not run.trunk:
            finished[name] = {**asdict(run), "loss": metrics[-1]["eval/loss"]}
        if not run.after:
            curves.append(_build_curve(run, metrics))
    if not finished:
        raise UserError(
            f"{folder}: no run is complete and has a validation loss yet; `t5x-lite sweep` continues the sweep"
        )
    return SweepPoints(build_points(finished), curves, left_out)


def finished_runs(folder: Path) -> tuple[list[PlannedRun], dict[str, str]]:
    """Return the complete runs of a sweep without its trunks, and why each of the others is left out, by its name.

    Raises:
        UserError: the folder is not that of a sweep.
    """
    statuses = read_statuses(folder / "sweep.jsonl")
    finished = []
    left_out = {}
    for run in read_plan(folder).runs:
        if run.trunk:
            continue
        run_dir = _run_dir(folder, run)
        problem = _find_problem(run, statuses.get(run.name, {}), read_steps(run_dir))
        if problem is None:
            finished.append(replace(run, run_dir=run_dir))
        else:
            left_out[run.name] = problem
    return finished, left_out


def _run_dir(folder: Path, run: PlannedRun) -> str:
    """Return the run directory, also where it was copied here from a bucket or another machine."""
    if is_remote(run.run_dir) or Path(run.run_dir).is_dir():
        return run.run_dir
    return str(folder / "runs" / Path(run.run_dir).name)


def _find_problem(run: PlannedRun, status: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> str | None:
    """Return why a run is left out; None if it is complete."""
    if status.get("state") == "diverged":
        return f"diverged: {status.get('reason', '')}"
    last_step = metrics[-1]["step"] if metrics else 0
    if last_step < run.steps:
        return f"not complete: step {last_step} of {run.steps}"
    return None


def _build_curve(run: PlannedRun, metrics: Sequence[Mapping[str, Any]]) -> TrainingCurve:
    """Return the smoothed training loss without its first twentieth."""
    tokens, loss = metric_series(metrics, "loss")
    flops = tokens * run.flops / run.tokens
    first = len(tokens) // 20
    return TrainingCurve(
        run.name, run.parameters, flops[first:], tokens[first:], smooth(loss)[first:], float(run.experts)
    )
