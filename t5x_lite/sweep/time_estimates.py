"""Estimate the time that the runs of a sweep take."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from rich.console import Console

from t5x_lite.progress import print_line
from t5x_lite.sweep.config import Sweep
from t5x_lite.sweep.planned_run import PlannedRun
from t5x_lite.sweep.process_slots import last_line

TimeEstimate: TypeAlias = Callable[[Sweep, Sequence[PlannedRun], Mapping[str, str], Console], dict[str, float]]
"""Maps a sweep, runs of it, environment variables and a console to the seconds of each run by its name."""


class _NoAnswerError(Exception):
    """A program that should print a step's seconds did not."""


def estimate_seconds(
    sweep: Sweep, runs: Sequence[PlannedRun], environment: Mapping[str, str], console: Console
) -> dict[str, float]:
    """Return the seconds of each run by its name; nothing if they cannot be determined.

    A step of the cheapest and of the most expensive model is measured on this machine or, for a cluster, modelled by
    the planner. The steps of the others are interpolated over their FLOPs, both in logarithms. A run on this machine
    also takes the time of starting and compiling.

    Args:
        sweep: the sweep.
        runs: at least one run.
        environment: environment variables of the runs.
        console: shows what is measured, or why nothing could be.
    """
    is_local = sweep.config.where == "local"
    by_cost = sorted(runs, key=lambda run: run.step_flops)
    ends = {run.name: run for run in (by_cost[0], by_cost[-1])}
    step_seconds: dict[float, float] = {}
    startup_seconds = 0.0
    for run in ends.values():
        started = time.monotonic()
        try:
            with console.status(f"{'measuring' if is_local else 'planning'} a step of {run.name}"):
                step_seconds[run.step_flops] = _step_seconds(run, environment, is_local)
        except _NoAnswerError as error:
            print_line(console, f"the hours are not known: {error}")
            return {}
        if is_local:
            startup_seconds = max(startup_seconds, time.monotonic() - started)
    log_flops = np.log([run.step_flops for run in runs])
    log_seconds = np.interp(log_flops, np.log(list(step_seconds.keys())), np.log(list(step_seconds.values())))
    estimates = {}
    for run, seconds in zip(runs, np.exp(log_seconds), strict=True):
        estimates[run.name] = startup_seconds + run.computed_steps * float(seconds)
    return estimates


def _step_seconds(run: PlannedRun, environment: Mapping[str, str], is_local: bool) -> float:
    """Measure or plan one step of a run in a separate process."""
    module = ["t5x_lite", "plan", "--json"]
    if is_local:
        module = ["t5x_lite.sweep.step_time"]
    overrides = [word for word in run.words if not word.startswith("branch.")]
    command = [sys.executable, "-m", *module, run.config, *overrides]
    completed = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False)
    try:
        answer = json.loads(completed.stdout.splitlines()[-1])
        if is_local:
            return answer["step_seconds"]
        return answer["modelled"]["step_seconds"]
    except (ValueError, KeyError, IndexError):
        raise _NoAnswerError(last_line(completed.stderr) or "no answer") from None
