"""Worker processes: they leave signals to the parent, and exit when it exits."""

import multiprocessing
import os
import signal
import threading


def end_with_parent() -> None:
    """End this process as soon as its parent has ended, also if the parent is killed. Returns at once."""
    threading.Thread(target=_wait_for_parent, name="parent", daemon=True).start()


def leave_signals_to_parent(worker: int = 0, workers: int = 1) -> None:
    """Begin a worker process: ignore SIGINT and SIGTERM, and end with the parent.

    A terminal and Slurm signal all processes of a group. The parent needs its workers until it has saved.

    Args:
        worker: number of the worker, as Grain passes it.
        workers: their count.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
