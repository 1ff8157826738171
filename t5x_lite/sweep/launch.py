"""`t5x-lite sweep`: the plan, the question, and what starts the runs that are missing, here or on a cluster."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Column

from t5x_lite.errors import UserError
from t5x_lite.evaluate.curves import metric_records
from t5x_lite.progress import print_line, print_table
from t5x_lite.run_dir import lock_dir
from t5x_lite.sweep.config import Sweep
from t5x_lite.sweep.grid import PlannedRun, expand, job_name, write_plan
from t5x_lite.sweep.points import Record
from t5x_lite.sweep.pool import Pool, last_line
from t5x_lite.train.metrics import format_duration, format_si

REPOSITORY = Path(__file__).resolve().parents[2]
SETTLED = {"done", "diverged"}
"""States that starting again would not change."""


def start(sweep: Sweep, *, yes: bool, environment: Mapping[str, str]) -> int:
    """Show the plan, ask, start what is missing; the exit code.

    Args:
        sweep: what to run.
        yes: do not ask.
        environment: of the runs.

    Raises:
        UserError: a sweep that cannot be had, or that another process runs.
    """
    runs = expand(sweep)
    if sweep.config.where != "local":
        _script("budgets.sh")
    with lock_dir(sweep.folder, "another process runs this sweep; wait for it"):
        write_plan(sweep, runs)
        record, console = Record(sweep.folder / "sweep.jsonl"), Console(stderr=True)
        states = {run.name: _state(sweep, run, record) for run in runs}
        missing = [run for run in runs if states[run.name] not in SETTLED]
        show(sweep, runs, states, estimates(sweep, missing, environment, console) if missing else {})
        if not missing:
            print_line(console, f"nothing to do; t5x-lite sweep fit {sweep.name} fits the law")
            return 0
        if not yes and not sys.stdin.isatty():
            raise UserError("this is not a terminal to ask at: give --yes to start the runs")
        if not yes and input(f"start {len(missing)} runs? [y/N] ").strip().lower() not in {"y", "yes"}:
            return 1
        if sweep.config.where in {"local", "tpu_vm"}:
            settled = {name: state for name, state in states.items() if state in SETTLED}
            return Pool(sweep, record, environment, _command(sweep)).run(missing, settled)
        submitted = {"slurm": _slurm, "gke": _gke}[sweep.config.where](sweep, missing, states, record)
        others = f"{len(missing) - submitted} were queued, running or wait for others"
        again = "the same command shows where they stand and goes on with what is missing"
        print_line(console, f"{submitted} runs submitted, {others}; {again}")
        return 0


def _state(sweep: Sweep, run: PlannedRun, record: Record) -> str:
    """What the run directory says; else what was written down, unless the directory denies it."""
    said = record.state(run.name).get("state", "new")
    if complete(run):
        return "done"
    gone = said == "done" or (said == "diverged" and not Path(run.run_dir).is_dir())
    return "new" if gone and sweep.config.where != "gke" else said  # what lies in a cluster is not seen from here


def complete(run: PlannedRun) -> bool:
    """Whether the last step was trained, evaluated and saved."""
    folder = Path(run.run_dir)
    saved = folder / "checkpoints" / str(run.steps) / "manifest.json"
    last = (metric_records(folder / "metrics.jsonl") or [{}])[-1]
    here = saved.is_file() or "checkpoint.folder" in run.overrides
    return here and last.get("step") == run.steps and "eval/loss" in last


def estimates(
    sweep: Sweep, runs: Sequence[PlannedRun], environment: Mapping[str, str], console: Console
) -> dict[str, float]:
    """Seconds of each run: steps of the cheapest and of the dearest model, measured here or planned for their pod.

    What lies between is interpolated, in logarithms of the FLOPs of a step.
    """
    ends = sorted(runs, key=lambda run: run.step_flops)
    local, known, starting = sweep.config.where == "local", {}, 0.0
    command = ["t5x_lite.sweep.measure"] if local else ["t5x_lite", "plan", "--json"]
    for run in {run.name: run for run in (ends[0], ends[-1])}.values():
        words = [word for word in run.words if not word.startswith("branch.")]
        with console.status(f"{'measuring' if local else 'planning'} a step of {run.name}"):
            begun, program = time.monotonic(), [sys.executable, "-m", *command, run.config, *words]
            done = subprocess.run(program, env=dict(environment), capture_output=True, text=True, check=False)
        try:
            said = json.loads(done.stdout.splitlines()[-1])
            known[run.step_flops] = said["step_seconds"] if local else said["modelled"]["step_seconds"]
            starting = max(starting, time.monotonic() - begun) if local else 0.0
        except (ValueError, KeyError, IndexError):
            print_line(console, f"hours are not known: {last_line(done.stderr) or 'no answer'}")
            return {}
    each = np.exp(np.interp(np.log([run.step_flops for run in runs]), np.log([*known]), np.log([*known.values()])))
    return {run.name: starting + run.own_steps * float(step) for run, step in zip(runs, each, strict=True)}


def show(sweep: Sweep, runs: Sequence[PlannedRun], states: Mapping[str, str], seconds: Mapping[str, float]) -> None:
    """The plan as a table, with what N and C count, and what all of it takes."""
    console, config, rows = Console(), sweep.config, []
    for run in runs:
        hours = f"{seconds[run.name] / 3600:.3f}" if run.name in seconds else "–"
        figures = (f"{one:.3g}".replace("e+", "e") for one in (run.parameters, run.tokens, run.flops))
        rows.append((run.name, *figures, str(run.own_steps), hours, states[run.name]))
    columns = (Column("run", no_wrap=True), "N", "D", "C", "steps", "hours", "state")
    print_table(console, f"sweep {sweep.name}", columns, rows)
    what = {
        "all": "all weights",
        "active": "weights that a token passes",
        "non_embedding": "the same without embeddings",
    }
    counted = "6·N·D" if config.flops == "6nd" else "the model's matrices, output and attention (causal half)"
    print_line(console, f"N counts {what[config.parameters]}; C counts {counted}")
    left = [run for run in runs if states[run.name] != "done"]
    about = f", about {format_duration(sum(seconds.values()) / config.jobs)} with jobs={config.jobs}" if seconds else ""
    flops = format_si(sum(run.own_flops for run in left))
    print_line(console, f"{len(runs)} runs, {len(runs) - len(left)} of them done; {flops}FLOPs are left{about}")


def _script(name: str) -> str:
    path = REPOSITORY / "launch" / name
    if not path.is_file():
        raise UserError(f"{path}: is not there; clusters are reached from a checkout of this project")
    return str(path)


def _shipped(run: PlannedRun) -> str:
    """The config's path inside the image, or on the hosts."""
    path = Path(run.config)
    if not path.is_relative_to(REPOSITORY / "configs"):
        raise UserError(f"{path}: must lie in {REPOSITORY / 'configs'}, which is what the hosts are given")
    return str(path.relative_to(REPOSITORY))


def _command(sweep: Sweep) -> Any:
    if sweep.config.where == "local":
        return lambda run: [sys.executable, "-m", "t5x_lite", "train", run.config, *run.words]
    script, options = _script("tpu_vm.sh"), sweep.config.launch.tpu_vm
    if sweep.config.dir is None:
        raise UserError("where=tpu_vm needs dir: a folder of a bucket that is mounted there and here")
    return lambda run: ["bash", script, job_name(sweep, run.name), _shipped(run), *options, *run.words]


def _call(command: Sequence[str]) -> str:
    """What a cluster's program prints.

    Raises:
        UserError: it is not here, or has failed.
    """
    if shutil.which(command[0]) is None:
        raise UserError(f"{command[0]} is not installed here; start the sweep where it is")
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        failed = f"{' '.join(command[:3])} … failed with exit code {done.returncode}"
        raise UserError(f"{failed}: {last_line(done.stderr)}")
    return done.stdout.strip()


def _slurm(sweep: Sweep, runs: Sequence[PlannedRun], states: Mapping[str, str], record: Record) -> int:
    """One job array for the trunks and the others, one that waits for it for the branches; none for what is queued."""
    jobs = {run.name: str(record.state(run.name).get("job", "")) for run in runs}
    queued = set(_call(["squeue", "--noheader", "--array", "--format=%i"]).split())
    new = [run for run in runs if jobs[run.name] not in queued and states.get(run.after or "") != "diverged"]
    before = {run.name: jobs[run.name].partition("_")[0] for run in runs if jobs[run.name] in queued}
    waves = [run for run in new if not run.after], [run for run in new if run.after]
    for number, wave in enumerate(filter(None, waves), len(list(sweep.folder.glob("array-*.txt")))):
        listed = (sweep.folder / f"array-{number}.txt").absolute()
        listed.write_text("".join(" ".join([run.config, *run.words]) + "\n" for run in wave), encoding="utf-8")
        ids = sorted({before[run.after] for run in wave if run.after in before})
        waits = [f"--dependency=afterany:{':'.join(ids)}"] if ids else []
        log = (sweep.folder / "%A_%a.log").absolute()
        array = [f"--array=1-{len(wave)}%{sweep.config.jobs}", f"--output={log}"]
        options = [*array, *waits, *sweep.config.launch.slurm]
        job = _call(["sbatch", "--parsable", *options, _script("slurm/array.sbatch"), str(listed)]).partition(";")[0]
        for task, run in enumerate(wave, 1):
            record.set(run.name, "submitted", job=f"{job}_{task}")
            before[run.name] = job
    return len(new)


def _gke(sweep: Sweep, runs: Sequence[PlannedRun], states: Mapping[str, str], record: Record) -> int:
    """A JobSet a run; a branch once its trunk is done. What has failed is made anew."""
    count = 0
    for run in runs:
        job, there, end = job_name(sweep, run.name), "", ""
        if record.state(run.name).get("state") == "submitted":
            asked = ["--ignore-not-found", "-o", "jsonpath={.metadata.name} {.status.terminalState}"]
            there, _, end = _call(["kubectl", "get", "jobset", job, *asked]).partition(" ")
        if end == "Completed":
            record.set(run.name, "done")
        elif there and end != "Failed":
            continue
        elif run.after is None or "done" in {record.state(run.after).get("state"), states[run.after]}:
            if there:
                _call(["kubectl", "delete", "jobset", job])
            _call(["bash", _script("gke/train.sh"), job, _shipped(run), *sweep.config.launch.gke, *run.words])
            record.set(run.name, "submitted", job=job)
            count += 1
    return count
