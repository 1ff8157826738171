"""`t5x-lite sweep`: show the plan, ask, and start the runs that are missing."""

import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Column

from t5x_lite import config as configuration
from t5x_lite import schema, storage
from t5x_lite.errors import UserError
from t5x_lite.local_copies import check_writable, local_file, uploading, with_urls
from t5x_lite.locked_folder import lock_dir
from t5x_lite.progress import format_duration, format_si, print_line, print_table
from t5x_lite.run_dir import describe_changes
from t5x_lite.run_layout import CONFIG_FILE, checkpoints_folder, has_checkpoint, newest_checkpoint
from t5x_lite.sweep.clusters import launch_script, submit_to_gke, submit_to_slurm, tpu_vm_command
from t5x_lite.sweep.config import Sweep
from t5x_lite.sweep.grid import expand
from t5x_lite.sweep.planned_run import PlannedRun, format_size, write_plan
from t5x_lite.sweep.process_pool import ProcessPool
from t5x_lite.sweep.run_files import has_diverged, read_steps, run_exists
from t5x_lite.sweep.status_log import StatusLog
from t5x_lite.sweep.time_estimates import TimeEstimate, estimate_seconds

FINAL_STATES = {"done", "diverged"}
"""States that another start would not change."""
PARAMETERS_COUNTED = {
    "all": "all parameters",
    "active": "active parameters",
    "non_embedding": "active parameters without embeddings",
}


def start(sweep: Sweep, *, yes: bool, environment: Mapping[str, str], estimate: TimeEstimate = estimate_seconds) -> int:
    """Show the plan, ask, and start the runs that are missing.

    Args:
        sweep: what to run.
        yes: do not ask.
        environment: environment variables of the runs.
        estimate: estimates the seconds of each missing run, which the plan shows.

    Returns:
        The exit code.

    Raises:
        UserError: the sweep is not valid, its bucket cannot be written, a run directory has a run of another config, a
            trunk is past a step from which a run would branch off, or another process runs the sweep.
    """
    runs = expand(sweep)
    if sweep.config.where != "local":
        launch_script("budgets.sh")
    if sweep.config.dir is not None:
        check_writable(sweep.config.dir)
    check_configs(runs)
    with lock_dir(sweep.config.dir or sweep.folder, "another process runs this sweep; wait for it"), uploading():
        log = StatusLog(sweep.folder / "sweep.jsonl")
        console = Console(stderr=True)
        states = {run.name: current_state(run, log) for run in runs}
        missing = [run for run in runs if states[run.name] not in FINAL_STATES]
        check_trunks(missing, runs)
        write_plan(sweep, runs)
        seconds = estimate(sweep, missing, environment, console) if missing else {}
        show_plan(sweep, runs, states, seconds)
        if not missing:
            print_line(console, f"nothing to do; t5x-lite sweep fit {with_urls(str(sweep.folder))} fits the law")
            return 0
        if not yes and not _confirm(len(missing)):
            return 1
        return _start_runs(sweep, missing, states, log, environment, console)


def check_configs(runs: Sequence[PlannedRun]) -> None:
    """Refuse a plan whose run directories have runs of other configs, such as those of the sweep before it was edited.

    Raises:
        UserError: names the first such run and the settings that differ.
    """
    for run in runs:
        if not read_steps(run.run_dir):
            continue
        path = local_file(storage.join(run.run_dir, CONFIG_FILE))
        if not path.is_file():
            continue
        existing_config = schema.validate(configuration.RunConfig, schema.read(configuration.RunConfig, path))
        config = configuration.load(run.config, run.words)
        changes = describe_changes(existing_config, config)
        if changes and not config.train.allow_changed_config:
            raise UserError(
                f"{run.run_dir}: belongs to a run with another config: {changes}; give the sweep another `dir` or "
                "name, or delete the run"
            )


def check_trunks(missing: Sequence[PlannedRun], runs: Sequence[PlannedRun]) -> None:
    """Refuse a run whose trunk is past the step to branch off, and has kept no checkpoint of it.

    That is so if the run was added to a sweep that has begun.

    Args:
        missing: the runs that are to be started.
        runs: all runs.

    Raises:
        UserError: names the first such run and its trunk.
    """
    trunks = {run.name: run for run in runs if run.trunk}
    for run in missing:
        if run.after is None or newest_checkpoint(_checkpoints_of(run)) is not None:
            continue
        trunk = trunks[run.after]
        folder = _checkpoints_of(trunk)
        step = int(str(run.overrides["branch.step"]))
        if (newest_checkpoint(folder) or 0) > step and not has_checkpoint(folder, step):
            raise UserError(
                f"run {run.name}: branches off step {step}, of which its trunk has kept no checkpoint: {folder}; give "
                "the sweep another `dir` or name, or delete the trunk, which is then trained again"
            )


def _checkpoints_of(run: PlannedRun) -> str:
    folder = configuration.load(run.config, run.words).checkpoint.folder
    return storage.expand(checkpoints_folder(run.run_dir, folder))


def _confirm(num_runs: int) -> bool:
    if not sys.stdin.isatty():
        raise UserError("there is no terminal on which to ask: give --yes to start the runs")
    answer = input(f"start {num_runs} runs? [y/N] ")
    return answer.strip().lower() in {"y", "yes"}


def _start_runs(
    sweep: Sweep,
    runs: Sequence[PlannedRun],
    states: Mapping[str, str],
    log: StatusLog,
    environment: Mapping[str, str],
    console: Console,
) -> int:
    """Start the runs where the sweep says; return the exit code."""
    final_states = {name: state for name, state in states.items() if state in FINAL_STATES}
    match sweep.config.where:
        case "local":
            return ProcessPool(sweep, log, environment, _local_command).run(runs, final_states)
        case "tpu_vm":
            return ProcessPool(sweep, log, environment, tpu_vm_command(sweep)).run(runs, final_states)
        case "slurm":
            num_submitted = submit_to_slurm(sweep, runs, states, log)
        case "gke":
            num_submitted = submit_to_gke(sweep, runs, states, log)
    others = f"{len(runs) - num_submitted} were queued, running or wait for others"
    next_step = "the same command shows their states and submits what is missing"
    print_line(console, f"{num_submitted} runs submitted, {others}; {next_step}")
    return 0


def _local_command(run: PlannedRun) -> list[str]:
    return [sys.executable, "-m", "t5x_lite", "train", run.config, *run.words]


def current_state(run: PlannedRun, log: StatusLog) -> str:
    """Return the state of a run: what its run directory says, `done` or `diverged`, or else that of the status log.

    Two states of the log are replaced by `new`: `done` where the run directory is not complete, and `diverged` where it
    was deleted.
    """
    if is_complete(run):
        return "done"
    if has_diverged(run.run_dir):
        return "diverged"
    state = log.state(run.name)
    if state == "done":
        return "new"
    if state == "diverged" and not run_exists(run.run_dir):
        return "new"
    return state


def is_complete(run: PlannedRun) -> bool:
    """Return whether the last step was trained, evaluated and saved."""
    metrics = read_steps(run.run_dir)
    if not metrics or metrics[-1]["step"] != run.steps:
        return False
    folder = configuration.load(run.config, run.words).checkpoint.folder
    if folder is not None and storage.is_remote(run.run_dir) and not storage.is_remote(folder):
        return True  # the folder is on a disk of the machine of the run
    return has_checkpoint(storage.expand(checkpoints_folder(run.run_dir, folder)), run.steps)


def show_plan(
    sweep: Sweep, runs: Sequence[PlannedRun], states: Mapping[str, str], seconds: Mapping[str, float]
) -> None:
    """Print the plan as a table, what N and C count, and what all of it takes.

    Args:
        sweep: the sweep.
        runs: all runs.
        states: the state of each run, by its name.
        seconds: the estimated duration of the runs that are missing, by their names, as far as it is known.
    """
    console = Console()
    rows = [_plan_row(run, states[run.name], seconds.get(run.name)) for run in runs]
    numbers = [Column(name, no_wrap=True, justify="right") for name in ("N", "D", "C", "steps", "hours")]
    columns = (Column("run", overflow="fold"), *numbers, Column("state", no_wrap=True))
    print_table(console, f"sweep {sweep.name}", columns, rows)

    flops_counted = "the model's matrices, output and attention (causal half)"
    if sweep.config.flops == "6nd":
        flops_counted = "6·N·D"
    print_line(console, f"N counts {PARAMETERS_COUNTED[sweep.config.parameters]}; C counts {flops_counted}")

    unfinished = [run for run in runs if states[run.name] != "done"]
    flops = format_si(sum(run.computed_flops for run in unfinished))
    summary = f"{len(runs)} runs, {len(runs) - len(unfinished)} of them done; {flops}FLOPs are left"
    if seconds:
        duration = format_duration(sum(seconds.values()) / sweep.config.jobs)
        summary += f", about {duration} with jobs={sweep.config.jobs}"
    print_line(console, summary)


def _plan_row(run: PlannedRun, state: str, seconds: float | None) -> tuple[str, ...]:
    hours = "–"
    if seconds is not None:
        hours = f"{seconds / 3600:.2f}"
    return (
        run.name,
        format_size(run.parameters),
        format_size(run.tokens),
        format_size(run.flops),
        str(run.computed_steps),
        hours,
        state,
    )
