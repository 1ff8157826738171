"""Runs as processes of this machine, several at the same time: retried, stopped together, and shown."""

import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from rich.progress import BarColumn, TaskID

from t5x_lite.errors import STOPPED, Diverged, UserError
from t5x_lite.local_copies import UPLOAD_SECONDS, with_urls
from t5x_lite.locked_folder import is_locked
from t5x_lite.metrics_file import is_number
from t5x_lite.parallel.distributed import handle_signals
from t5x_lite.progress import print_line, progress_bar
from t5x_lite.storage import is_remote
from t5x_lite.sweep.config import Sweep
from t5x_lite.sweep.planned_run import PlannedRun
from t5x_lite.sweep.process_slots import ProcessSlots, SlotProcess
from t5x_lite.sweep.status_log import StatusLog
from t5x_lite.watch.follower import MetricsFollower

POLL_SECONDS = 0.5
"""Time between two looks at the processes."""
MAX_REASON = 300
"""Characters of a process's last line that the status log keeps."""


@dataclass
class RunningJob:
    """A run in progress. `next_look` is the time to ask a bucket for more metrics."""

    run: PlannedRun
    process: SlotProcess
    progress_task: TaskID
    metrics: MetricsFollower
    started: float = field(default_factory=time.monotonic)
    next_look: float = 0.0
    step: int = 0

    @property
    def flops(self) -> float:
        """FLOPs that it has computed."""
        first_step = self.run.steps - self.run.computed_steps
        return self.run.step_flops * max(self.step - first_step, 0)


class ProcessPool:
    """Starts runs in `jobs` slots, each with its share of the machine's devices, until all have ended."""

    def __init__(
        self,
        sweep: Sweep,
        log: StatusLog,
        environment: Mapping[str, str],
        command: Callable[[PlannedRun], list[str]],
    ) -> None:
        """Prepare a pool.

        Args:
            sweep: the sweep.
            log: receives the states of the runs.
            environment: environment variables of the processes.
            command: returns the program of a run with its arguments.
        """
        self.sweep = sweep
        self.log = log
        self.slots = ProcessSlots(sweep.config.jobs, environment)
        self.command = command
        self.running: list[RunningJob] = []
        self.pending: list[PlannedRun] = []
        self.final_states: dict[str, str] = {}
        self.attempts: Counter[str] = Counter()
        self.progress = progress_bar("{task.description}", BarColumn(), "{task.fields[at]}")

    def run(self, runs: Sequence[PlannedRun], final_states: Mapping[str, str]) -> int:
        """Run all; return 0 if all are done, `STOPPED` after a request to stop, and otherwise 1.

        Args:
            runs: the runs that are missing.
            final_states: states of the other runs of the sweep, by name, as far as these have ended.
        """
        self.pending = list(runs)
        self.final_states = dict(final_states)
        with handle_signals(self.slots.stop, signal.SIGINT, signal.SIGTERM), self.progress:
            total_flops = sum(run.computed_flops for run in runs)
            overall_task = self.progress.add_task(self.sweep.name, total=total_flops, at=f"0/{len(runs)}")
            try:
                while self.running or (self.pending and not self.slots.stop_requested):
                    self._start_pending()
                    time.sleep(POLL_SECONDS)
                    ended = self.slots.take_ended()
                    for job in list(self.running):
                        if job.process in ended:
                            self._finish(job)
                    self._read_metrics()
                    self._show_progress(overall_task, runs)
            except BaseException:
                self.slots.stop()  # the runs save their states and end: nobody would write down theirs
                raise
        not_done = sorted(run.name for run in runs if self.final_states.get(run.name) != "done")
        summary = f"{len(runs) - len(not_done)} of {len(runs)} runs are done"
        if not_done:
            summary += f"; not: {', '.join(not_done)}"
        print_line(self.progress.console, summary)
        if self.slots.stop_requested:
            return STOPPED
        return 1 if not_done else 0

    def _start_pending(self) -> None:
        """Start the runs for which there is a free slot, and skip those whose trunk has failed."""
        for run in list(self.pending):
            trunk_state = "done"
            if run.after is not None:
                trunk_state = self.final_states.get(run.after, "unfinished")
            if trunk_state not in {"done", "unfinished"}:
                self.pending.remove(run)
                self.final_states[run.name] = "skipped"
                self._set_state(run, "skipped", reason=f"{run.after}, which it branches off, is {trunk_state}")
            elif trunk_state == "done" and self.slots.has_free_slot and not is_locked(run.run_dir):
                self.pending.remove(run)
                self._start(run)

    def _start(self, run: PlannedRun) -> None:
        output = self.sweep.folder / "logs" / f"{run.name}.log"
        output.parent.mkdir(exist_ok=True)
        process = self.slots.start(run.name, self.command(run), output)
        self.attempts[run.name] += 1
        progress_task = self.progress.add_task(f"  {run.name}", total=run.steps, at="")
        self.running.append(RunningJob(run, process, progress_task, MetricsFollower(run.run_dir)))
        self._set_state(run, "running", attempt=self.attempts[run.name], pid=process.popen.pid)

    def _finish(self, job: RunningJob) -> None:
        """Write down how a process has ended, and decide whether its run is started again."""
        self.running.remove(job)
        self.progress.remove_task(job.progress_task)
        exit_code = job.process.exit_code
        state = self._state_after(job.run, exit_code)
        details: dict[str, object] = {
            "exit_code": exit_code,
            "seconds": round(time.monotonic() - job.started, 1),
        }
        if state not in {"done", "stopped"}:
            details["reason"] = _failure_reason(job.process, state)
        self._set_state(job.run, state, **details)
        if state in {"stopped", "retried"}:
            self.pending.insert(0, job.run)
        else:
            self.final_states[job.run.name] = state

    def _state_after(self, run: PlannedRun, exit_code: int | None) -> str:
        if exit_code == 0:
            return "done"
        if exit_code == Diverged.exit_code:
            return "diverged"
        if exit_code == STOPPED or self.slots.stop_requested:
            return "stopped"
        is_user_error = exit_code == UserError.exit_code
        if not is_user_error and self.attempts[run.name] <= self.sweep.config.retries:
            return "retried"
        return "failed"

    def _read_metrics(self) -> None:
        """Read the lines that each run has added to its metrics, and show the last."""
        for job in self.running:
            if self._read_new_lines(job) and job.metrics.records:
                metrics = job.metrics.records[-1]
                job.step = int(metrics["step"])
                loss = metrics.get("loss")
                text = f"step {job.step} · loss {loss if is_number(loss) else float('nan'):.4f}"
                self.progress.update(job.progress_task, completed=job.step, at=text)

    def _read_new_lines(self, job: RunningJob) -> bool:
        """Return whether a run has new metrics. A bucket is asked as often as the run uploads to it."""
        if is_remote(job.run.run_dir):
            if time.monotonic() < job.next_look:
                return False
            job.next_look = time.monotonic() + UPLOAD_SECONDS
        with suppress(UserError):  # of a bucket, which is asked again
            return job.metrics.update()
        return False

    def _show_progress(self, overall_task: TaskID, runs: Sequence[PlannedRun]) -> None:
        num_ended = 0
        flops = sum(job.flops for job in self.running)
        for run in runs:
            if run.name in self.final_states:
                num_ended += 1
                flops += run.computed_flops
        self.progress.update(overall_task, completed=flops, at=f"{num_ended}/{len(runs)}")

    def _set_state(self, run: PlannedRun, state: str, **details: object) -> None:
        self.log.set(run.name, state, **details)
        message = f"{run.name}: {state}"
        if "reason" in details:
            message += f": {details['reason']}"
        print_line(self.progress.console, message)


def _failure_reason(process: SlotProcess, state: str) -> str:
    reason = process.last_line[-MAX_REASON:] or "the process printed nothing"
    if state == "failed":
        return f"{reason}; see {with_urls(str(process.output))}"
    return reason
