"""Starting the runs of a sweep on clusters, by the scripts in launch/ and the clusters' own programs."""

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from t5x_lite.errors import UserError
from t5x_lite.storage import is_remote
from t5x_lite.sweep.config import Sweep
from t5x_lite.sweep.planned_run import PlannedRun, job_name
from t5x_lite.sweep.process_slots import last_line
from t5x_lite.sweep.status_log import StatusLog

REPOSITORY = Path(__file__).resolve().parents[2]


def launch_script(name: str) -> str:
    """Return the path of a script in launch/.

    Raises:
        UserError: it does not exist, as in an installed package.
    """
    path = REPOSITORY / "launch" / name
    if not path.is_file():
        raise UserError(f"{path}: does not exist; clusters need a checkout of this project")
    return str(path)


def _remote_config(run: PlannedRun) -> str:
    """Return the config's path inside the container image, or on the hosts."""
    path = Path(run.config)
    if not path.is_relative_to(REPOSITORY / "configs"):
        raise UserError(f"{path}: must be in {REPOSITORY / 'configs'}, which is copied to the hosts")
    return str(path.relative_to(REPOSITORY))


def _run_program(command: Sequence[str]) -> str:
    """Run a program of a cluster and return its output.

    Raises:
        UserError: it is not installed, or it fails.
    """
    if shutil.which(command[0]) is None:
        raise UserError(f"{command[0]} is not installed here; start the sweep where it is")
    completed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if completed.returncode != 0:
        beginning = " ".join(command[:3])
        raise UserError(f"{beginning} … failed with exit code {completed.returncode}: {last_line(completed.stderr)}")
    return completed.stdout.strip()


def tpu_vm_command(sweep: Sweep) -> Callable[[PlannedRun], list[str]]:
    """Return a function that returns the command that trains a run on its own TPU VM, and waits for it."""
    script = launch_script("tpu_vm.sh")

    def command(run: PlannedRun) -> list[str]:
        options = sweep.config.launch.tpu_vm
        return ["bash", script, job_name(sweep, run.name), _remote_config(run), *options, *run.words]

    return command


def submit_to_slurm(sweep: Sweep, runs: Sequence[PlannedRun], states: Mapping[str, str], log: StatusLog) -> int:
    """Submit one job array for trunks and single runs, and another for branches, which waits for the trunks.

    Runs that are in the queue already are not submitted again, and branches of a diverged trunk never.

    Args:
        sweep: the sweep.
        runs: the runs that are missing.
        states: the states of all runs.
        log: receives the jobs of the runs.

    Returns:
        The number of runs that were submitted.
    """
    job_of_run: dict[str, str] = {}
    queued_jobs = set(_run_program(["squeue", "--noheader", "--array", "--format=%i"]).split())
    independent_runs = []
    branches = []
    for run in runs:
        array_task = str(log.status(run.name).get("job", ""))
        if array_task in queued_jobs:
            job_of_run[run.name] = array_task.partition("_")[0]
        elif run.after is None:
            independent_runs.append(run)
        elif states.get(run.after) != "diverged":
            branches.append(run)
    arrays = [array_runs for array_runs in (independent_runs, branches) if array_runs]
    folder = _shared_folder(sweep)
    first_number = len(list(folder.glob("array-*.txt")))
    for number, array_runs in enumerate(arrays, first_number):
        list_path = folder / f"array-{number}.txt"
        job = _submit_array(sweep, array_runs, job_of_run, list_path)
        for task, run in enumerate(array_runs, start=1):
            log.set(run.name, "submitted", job=f"{job}_{task}")
            job_of_run[run.name] = job
    return len(independent_runs) + len(branches)


def _shared_folder(sweep: Sweep) -> Path:
    """Return the folder of the lists and logs of job arrays, which all nodes see.

    Of a sweep in a bucket it is `sweeps/NAME` where the command runs, since the local copy is of this process.
    """
    folder = sweep.folder
    if sweep.config.dir is not None and is_remote(sweep.config.dir):
        folder = Path("sweeps") / sweep.name
        folder.mkdir(parents=True, exist_ok=True)
    return folder.absolute()


def _submit_array(sweep: Sweep, runs: Sequence[PlannedRun], job_of_run: Mapping[str, str], list_path: Path) -> str:
    """Submit a job array that waits for the jobs of the runs' trunks; return its id.

    The array reads the commands of its runs from the file at `list_path`, which is written here.

    Raises:
        UserError: the path of a config has white space, at which the script splits the commands; sbatch fails.
    """
    for run in runs:
        if any(character.isspace() for character in run.config):
            raise UserError(f"{run.config}: white space in the path of a config splits it on the cluster; rename it")
    lines = [" ".join([run.config, *run.words]) + "\n" for run in runs]
    list_path.write_text("".join(lines), encoding="utf-8")
    log_pattern = list_path.with_name("%A_%a.log")
    options = [f"--array=1-{len(runs)}%{sweep.config.jobs}", f"--output={log_pattern}"]
    trunk_jobs = set()
    for run in runs:
        if run.after is not None and run.after in job_of_run:
            trunk_jobs.add(job_of_run[run.after])
    if trunk_jobs:
        options.append(f"--dependency=afterany:{':'.join(sorted(trunk_jobs))}")
    options.extend(sweep.config.launch.slurm)
    output = _run_program(["sbatch", "--parsable", *options, launch_script("slurm/array.sbatch"), str(list_path)])
    return output.partition(";")[0]


def submit_to_gke(sweep: Sweep, runs: Sequence[PlannedRun], states: Mapping[str, str], log: StatusLog) -> int:
    """Submit a JobSet for each run; one that has failed is deleted and created again.

    A branch is submitted only once its trunk is done. Arguments and result are those of `submit_to_slurm`.
    """
    num_submitted = 0
    for run in runs:
        job = job_name(sweep, run.name)
        job_exists = False
        terminal_state = ""
        if log.state(run.name) == "submitted":
            query = ["--ignore-not-found", "-o", "jsonpath={.metadata.name} {.status.terminalState}"]
            name, _, terminal_state = _run_program(["kubectl", "get", "jobset", job, *query]).partition(" ")
            job_exists = bool(name)
        if terminal_state == "Completed":
            log.set(run.name, "done")
            continue
        is_active = job_exists and terminal_state != "Failed"
        if is_active or not _is_trunk_done(run, states, log):
            continue
        if job_exists:
            _run_program(["kubectl", "delete", "jobset", job])
        options = sweep.config.launch.gke
        script = launch_script("gke/train.sh")
        _run_program(["bash", script, job, _remote_config(run), *options, *run.words])
        log.set(run.name, "submitted", job=job)
        num_submitted += 1
    return num_submitted


def _is_trunk_done(run: PlannedRun, states: Mapping[str, str], log: StatusLog) -> bool:
    return run.after is None or states[run.after] == "done" or log.state(run.after) == "done"
