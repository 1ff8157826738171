"""Processes that evaluate the runs of a sweep, several at the same time."""

import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn

from t5x_lite.errors import STOPPED
from t5x_lite.local_copies import with_urls
from t5x_lite.parallel.distributed import handle_signals
from t5x_lite.progress import print_line, progress_bar
from t5x_lite.sweep.device_share import start_process
from t5x_lite.sweep.process_pool import last_line

POLL_SECONDS = 0.2
"""Time between two looks at the processes."""


@dataclass(frozen=True)
class _Job:
    """The process of a run, the slot whose share of the devices it has, and the file of its output."""

    run: str
    slot: int
    process: subprocess.Popen[bytes]
    log: Path


class _EvaluationPool:
    def __init__(self, jobs: int, environment: Mapping[str, str], folder: Path) -> None:
        self.jobs = jobs
        self.environment = environment
        self.folder = folder
        self.running: list[_Job] = []
        self.stop_requested = False

    def start(self, run: str, command: Sequence[str]) -> None:
        """Start a process in a free slot."""
        slot = min(set(range(self.jobs)) - {job.slot for job in self.running})
        log = self.folder / f"{run}.log"
        with log.open("wb") as output:
            process = start_process(command, slot, self.jobs, self.environment, output)
        self.running.append(_Job(run, slot, process, log))
        if self.stop_requested:  # while it was starting
            process.terminate()

    def take_ended(self) -> list[_Job]:
        """Return the processes that have ended since the last call."""
        ended = [job for job in self.running if job.process.poll() is not None]
        self.running = [job for job in self.running if job not in ended]
        return ended

    def stop(self, *_: object) -> None:
        """End all processes, and start no more."""
        self.stop_requested = True
        for job in self.running:
            job.process.terminate()


def run_evaluations(
    commands: Mapping[str, Sequence[str]], jobs: int, environment: Mapping[str, str], folder: Path
) -> int:
    """Run a command for each run of a sweep, and show the progress.

    Args:
        commands: words of the command by the name of the run.
        jobs: processes at the same time.
        environment: environment variables of the processes.
        folder: where their outputs are written, as `<run>.log`.

    Returns:
        0 if all commands succeed, `STOPPED` after SIGINT or SIGTERM, and otherwise 1.
    """
    pending = dict(commands)
    failed = 0
    pool = _EvaluationPool(jobs, environment, folder)
    progress = progress_bar("evaluating", BarColumn(), MofNCompleteColumn(), "{task.description}")
    with handle_signals(pool.stop, signal.SIGINT, signal.SIGTERM), progress:
        task = progress.add_task("", total=len(commands))
        while pool.running or (pending and not pool.stop_requested):
            while pending and len(pool.running) < jobs and not pool.stop_requested:
                run = next(iter(pending))
                pool.start(run, pending.pop(run))
            time.sleep(POLL_SECONDS)
            for job in pool.take_ended():
                progress.advance(task)
                if job.process.returncode != 0 and not pool.stop_requested:
                    failed += 1
                    reason = last_line(job.log.read_text(encoding="utf-8", errors="replace"))
                    print_line(progress.console, f"{job.run}: failed: {reason}; see {with_urls(str(job.log))}")
            progress.update(task, description=", ".join(job.run for job in pool.running))
    if pool.stop_requested:
        return STOPPED
    return 1 if failed else 0
