"""Some runs at a time as processes of this machine: retried, stopped together, watched."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import BarColumn

from t5x_lite.errors import STOPPED, Diverged, UserError
from t5x_lite.parallel.distributed import handle_signals
from t5x_lite.progress import print_line, progress_bar
from t5x_lite.sweep.config import Sweep
from t5x_lite.sweep.grid import PlannedRun
from t5x_lite.sweep.points import Record

POLL = 0.5
"""Seconds between looks at the processes."""


@dataclass
class Job:
    """A run under way; `offset` is as far as its metrics were read."""

    run: PlannedRun
    process: subprocess.Popen[bytes]
    slot: int
    bar: Any
    started: float = field(default_factory=time.monotonic)
    offset: int = 0
    step: int = 0

    @property
    def flops(self) -> float:
        """Those that are done."""
        return self.run.step_flops * max(self.step - self.run.steps + self.run.own_steps, 0)


class Pool:
    """Starts runs in `jobs` slots, each with its share of the processors or GPUs, until all have ended."""

    def __init__(
        self, sweep: Sweep, record: Record, environment: Mapping[str, str], command: Callable[[PlannedRun], list[str]]
    ) -> None:
        self.sweep, self.record, self.environment, self.command = sweep, record, environment, command
        self.jobs: list[Job] = []
        self.attempts: Counter[str] = Counter()
        self.asked = False
        self.bar = progress_bar("{task.description}", BarColumn(), "{task.fields[at]}")

    def run(self, runs: Sequence[PlannedRun], settled: Mapping[str, str]) -> int:
        """Run all; 0 if all are done, `STOPPED` after a request to stop, else 1.

        Args:
            runs: those that are missing.
            settled: the states of those that are done, or never will be.
        """
        pending, ended = list(runs), dict(settled)
        with handle_signals(self._stop, signal.SIGINT, signal.SIGTERM), self.bar:
            whole = self.bar.add_task(self.sweep.name, total=sum(run.own_flops for run in runs), at=f"0/{len(runs)}")
            while self.jobs or (pending and not self.asked):
                self._begin(pending, ended)
                time.sleep(POLL)
                for job in [job for job in self.jobs if job.process.poll() is not None]:
                    self._end(job, pending, ended)
                self._look()
                there = [run for run in runs if run.name in ended]
                moved = sum(run.own_flops for run in there) + sum(job.flops for job in self.jobs)
                self.bar.update(whole, completed=moved, at=f"{len(there)}/{len(runs)}")
        bad = sorted(run.name for run in runs if ended.get(run.name) != "done")
        those = f"; not: {', '.join(bad)}" if bad else ""
        print_line(self.bar.console, f"{len(runs) - len(bad)} of {len(runs)} runs are done{those}")
        return STOPPED if self.asked else int(bool(bad))

    def _begin(self, pending: list[PlannedRun], ended: dict[str, str]) -> None:
        for run in list(pending):
            after = ended.get(run.after) if run.after else "done"
            if after and after != "done":
                pending.remove(run)
                ended[run.name] = "skipped"
                self._state(run, "skipped", reason=f"{run.after}, which it branches off, is {after}")
            elif len(self.jobs) < self.sweep.config.jobs and after and not busy(Path(run.run_dir)) and not self.asked:
                pending.remove(run)
                self._launch(run)

    def _launch(self, run: PlannedRun) -> None:
        slot = min(set(range(self.sweep.config.jobs)) - {job.slot for job in self.jobs})
        path = self._log(run)
        path.parent.mkdir(exist_ok=True)
        devices, cores = share(slot, self.sweep.config.jobs, self.environment)
        with path.open("ab") as log:
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
        self.attempts[run.name] += 1
        task = self.bar.add_task(f"  {run.name}", total=run.steps, at="")
        self.jobs.append(Job(run, process, slot, task))
        self._state(run, "running", attempt=self.attempts[run.name], pid=process.pid)

    def _end(self, job: Job, pending: list[PlannedRun], ended: dict[str, str]) -> None:
        self.jobs.remove(job)
        self.bar.remove_task(job.bar)
        run, code = job.run, job.process.returncode
        more = {"exit_code": code, "seconds": round(time.monotonic() - job.started, 1)}
        state = {0: "done", Diverged.exit_code: "diverged", STOPPED: "stopped"}.get(code, "failed")
        if state == "failed" and self.asked:
            state = "stopped"
        elif state == "failed" and code != UserError.exit_code and self.attempts[run.name] <= self.sweep.config.retries:
            state = "retried"
        if state not in {"done", "stopped"}:
            said = last_line(self._log(run).read_text(encoding="utf-8", errors="replace"))
            reason = said[-300:] or "nothing was logged"
            more["reason"] = f"{reason}; see {self._log(run)}" if state == "failed" else reason
        self._state(run, state, **more)
        if state in {"stopped", "retried"}:
            pending.insert(0, run)
        else:
            ended[run.name] = state

    def _log(self, run: PlannedRun) -> Path:
        return self.sweep.folder / "logs" / f"{run.name}.log"

    def _look(self) -> None:
        """The newest lines of every run's metrics."""
        for job in self.jobs:
            new = b""
            with suppress(FileNotFoundError), (Path(job.run.run_dir) / "metrics.jsonl").open("rb") as file:
                file.seek(job.offset)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            job.offset += len(whole)
            if whole:
                line = json.loads(whole.splitlines()[-1])
                job.step, loss = line["step"], line["loss"] or float("nan")
                self.bar.update(job.bar, completed=job.step, at=f"step {job.step} · loss {loss:.4f}")

    def _state(self, run: PlannedRun, state: str, **more: Any) -> None:
        self.record.set(run.name, state, **more)
        reason = f": {more['reason']}" if "reason" in more else ""
        print_line(self.bar.console, f"{run.name}: {state}{reason}")

    def _stop(self, *_: object) -> None:
        """Ask every run to save and leave; none is started any more."""
        self.asked = True
        for job in self.jobs:
            job.process.terminate()


def last_line(said: str) -> str:
    """What a program has said last, and may have failed of; empty if it said nothing."""
    return (said.strip().splitlines() or [""])[-1]


def busy(run_dir: Path) -> bool:
    """Whether a process that outlived an earlier start still trains this run."""
    with suppress(FileNotFoundError), (run_dir / ".lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
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
