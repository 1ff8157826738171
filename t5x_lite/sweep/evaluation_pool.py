"""Processes that evaluate the runs of a sweep, several at the same time."""

import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn

from t5x_lite.errors import STOPPED
from t5x_lite.local_copies import with_urls
from t5x_lite.parallel.distributed import handle_signals
from t5x_lite.progress import print_line, progress_bar
from t5x_lite.sweep.process_slots import ProcessSlots

POLL_SECONDS = 0.2
"""Time between two looks at the processes."""


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
    slots = ProcessSlots(jobs, environment)
    progress = progress_bar("evaluating", BarColumn(), MofNCompleteColumn(), "{task.description}")
    with handle_signals(slots.stop, signal.SIGINT, signal.SIGTERM), progress:
        task = progress.add_task("", total=len(commands))
        while slots.running or (pending and not slots.stop_requested):
            while pending and slots.has_free_slot:
                run = next(iter(pending))
                output = folder / f"{run}.log"
                output.unlink(missing_ok=True)
                slots.start(run, pending.pop(run), output)
            time.sleep(POLL_SECONDS)
            for process in slots.take_ended():
                progress.advance(task)
                if process.exit_code != 0 and not slots.stop_requested:
                    failed += 1
                    output_url = with_urls(str(process.output))
                    print_line(progress.console, f"{process.name}: failed: {process.last_line}; see {output_url}")
            progress.update(task, description=", ".join(process.name for process in slots.running))
    if slots.stop_requested:
        return STOPPED
    return 1 if failed else 0
