"""Some runs at a time as processes of this machine: retried, stopped together, watched."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from t5x_lite.errors import STOPPED, Diverged, UserError
from t5x_lite.sweep.config import Sweep
from t5x_lite.sweep.grid import Planned

POLL = 0.5
"""Seconds between looks at the processes."""


class Record(Protocol):
    """The table of states."""

    def set(self, run: str, state: str, **more: Any) -> None: ...


@dataclass
class Job:
    """A run under way; `offset` is as far as its metrics were read."""

    run: Planned
    process: subprocess.Popen[bytes]
    slot: int
    bar: Any
    started: float = field(default_factory=time.monotonic)
    offset: int = 0
    step: int = 0


class Pool:
    """Starts runs in `jobs` slots, each with its share of the processors or GPUs, until all have ended."""

    def __init__(
        self, sweep: Sweep, record: Record, environment: Mapping[str, str], command: Callable[[Planned], list[str]]
    ) -> None:
        self.sweep, self.record, self.environment, self.command = sweep, record, environment, command
        self.jobs: list[Job] = []
        self.attempts: dict[str, int] = {}
        self.asked = False
        self.console = Console(stderr=True)

    def run(self, runs: Sequence[Planned], settled: Mapping[str, str]) -> int:
        """Run all; 0 if all are done, `STOPPED` after a request to stop, else 1.

        Args:
            runs: those that are missing.
            settled: the states of those that are done, or never will be.
        """
        pending, ended = list(runs), dict(settled)
        before = {sign: signal.signal(sign, self._stop) for sign in (signal.SIGINT, signal.SIGTERM)}
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[at]}"))
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        try:
            with Progress(*columns, *times, console=self.console, disable=not self.console.is_terminal) as bar:
                whole = bar.add_task(self.sweep.name, total=sum(run.own_flops for run in runs), at=f"0/{len(runs)}")
                while self.jobs or (pending and not self.asked):
                    self._begin(pending, ended, bar)
                    time.sleep(POLL)
                    over = [job for job in self.jobs if job.process.poll() is not None]
                    for job in over:
                        self._end(job, pending, ended, bar)
                    self._look(bar)
                    there = [run for run in runs if run.name in ended]
                    moved = sum(run.own_flops for run in there)
                    moved += sum(job.run.own_flops * self._share(job) for job in self.jobs)
                    bar.update(whole, completed=moved, at=f"{len(there)}/{len(runs)}")
        finally:
            for sign, handler in before.items():
                signal.signal(sign, handler)
        bad = sorted({run.name for run in runs} - {name for name, state in ended.items() if state == "done"})
        self._say(f"{len(runs) - len(bad)} of {len(runs)} runs are done" + (f"; not: {', '.join(bad)}" if bad else ""))
        return STOPPED if self.asked else int(bool(bad))

    def _begin(self, pending: list[Planned], ended: dict[str, str], bar: Progress) -> None:
        for run in list(pending):
            after = ended.get(run.after or "", "done" if run.after is None else "")
            if after and after != "done":
                pending.remove(run)
                ended[run.name] = "skipped"
                self._state(run, "skipped", reason=f"{run.after}, which it branches off, is {after}")
            elif len(self.jobs) < self.sweep.config.jobs and after and not busy(Path(run.run_dir)) and not self.asked:
                pending.remove(run)
                self._launch(run, bar)

    def _launch(self, run: Planned, bar: Progress) -> None:
        slot = min(set(range(self.sweep.config.jobs)) - {job.slot for job in self.jobs})
        logs = self.sweep.folder / "logs"
        logs.mkdir(exist_ok=True)
        devices, cores = share(slot, self.sweep.config.jobs, self.environment)
        with (logs / f"{run.name}.log").open("ab") as log:
            process = subprocess.Popen(
                self.command(run),
                env={**self.environment, **devices},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is passed on by this process, once
            )
        if cores:
            os.sched_setaffinity(process.pid, cores)
        self.attempts[run.name] = self.attempts.get(run.name, 0) + 1
        task = bar.add_task(f"  {run.name}", total=run.steps, at="")
        self.jobs.append(Job(run, process, slot, task))
        self._state(run, "running", attempt=self.attempts[run.name], pid=process.pid)

    def _end(self, job: Job, pending: list[Planned], ended: dict[str, str], bar: Progress) -> None:
        self.jobs.remove(job)
        bar.remove_task(job.bar)
        run, code = job.run, job.process.returncode
        log = self.sweep.folder / "logs" / f"{run.name}.log"
        more = {"exit_code": code, "seconds": round(time.monotonic() - job.started, 1)}
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = said[-1][-300:] if said else "nothing was logged"
        if code == 0:
            ended[run.name] = "done"
            self._state(run, "done", **more)
        elif code == Diverged.exit_code:
            ended[run.name] = "diverged"
            self._state(run, "diverged", reason=reason, **more)
        elif code == STOPPED or self.asked:
            self._state(run, "stopped", **more)
            pending.append(run)
        elif code != UserError.exit_code and self.attempts[run.name] <= self.sweep.config.retries:
            self._state(run, "retried", reason=reason, **more)
            pending.insert(0, run)
        else:
            ended[run.name] = "failed"
            self._state(run, "failed", reason=f"{reason}; see {log}", **more)

    def _look(self, bar: Progress) -> None:
        """The newest lines of every run's metrics."""
        for job in self.jobs:
            path = Path(job.run.run_dir) / "metrics.jsonl"
            if not path.is_file():
                continue
            with path.open("rb") as file:
                file.seek(job.offset)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            job.offset += len(whole)
            if whole:
                line = json.loads(whole.splitlines()[-1])
                job.step = line["step"]
                bar.update(job.bar, completed=job.step, at=f"step {job.step} · loss {line['loss'] or float('nan'):.4f}")

    def _share(self, job: Job) -> float:
        first = job.run.steps - job.run.own_steps
        return max(job.step - first, 0) / job.run.own_steps

    def _state(self, run: Planned, state: str, **more: Any) -> None:
        self.record.set(run.name, state, **more)
        reason = f": {more['reason']}" if "reason" in more else ""
        self._say(f"{run.name}: {state}{reason}")

    def _say(self, message: str) -> None:
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)

    def _stop(self, *_: object) -> None:
        """Ask every run to save and leave; none is started any more."""
        self.asked = True
        for job in self.jobs:
            job.process.terminate()


def busy(run_dir: Path) -> bool:
    """Whether a process that outlived an earlier start still trains this run."""
    lock = run_dir / ".lock"
    if not lock.is_file():
        return False
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def share(slot: int, jobs: int, environment: Mapping[str, str]) -> tuple[dict[str, str], set[int]]:
    """What a slot runs on: its GPUs, or its part of one's memory, as variables; else its processor cores."""
    gpus = _gpus(environment)
    if not gpus:
        cores = sorted(os.sched_getaffinity(0))
        return {}, set(cores[slot::jobs]) if 1 < jobs <= len(cores) else set()
    if jobs <= len(gpus):
        return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[slot::jobs])}, set()
    together = -(-jobs // len(gpus))
    part = f"{0.9 / together:.3f}"
    return {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)], "XLA_PYTHON_CLIENT_MEM_FRACTION": part}, set()


def _gpus(environment: Mapping[str, str]) -> list[str]:
    if environment.get("JAX_PLATFORMS") == "cpu" or shutil.which("nvidia-smi") is None:
        return []
    if "CUDA_VISIBLE_DEVICES" in environment:
        return [one for one in environment["CUDA_VISIBLE_DEVICES"].split(",") if one]
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [str(number) for number, line in enumerate(listed.splitlines()) if line.startswith("GPU ")]
