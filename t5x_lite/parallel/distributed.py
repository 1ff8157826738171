"""Several processes as one program, and how a process is asked to stop."""

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils


def initialize(cache_dir: Path) -> None:
    """Join the processes of the job, if it has several, and keep compiled programs in `cache_dir/compiled`.

    A job is known by `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, or is one that JAX finds by
    itself: Slurm, Open MPI, a TPU pod. `JAX_COMPILATION_CACHE_DIR` names another cache.
    """
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        jax.distributed.initialize(
            num_processes=int(os.environ["JAX_NUM_PROCESSES"]), process_id=int(os.environ["JAX_PROCESS_ID"])
        )
    elif _in_cluster():
        jax.distributed.initialize()
    simulated = re.search(r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    if simulated:
        # Simulated devices share one pool of threads, as many as there are cores: a collective waits for ever if a
        # copy for a checkpoint or another program holds the thread of a device that it waits for.
        os.environ.setdefault("NPROC", str(4 * int(simulated[1])))
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str((cache_dir / "compiled").absolute()))


def _in_cluster() -> bool:
    several = any(int(os.environ.get(name, "1")) > 1 for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
    return several or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


@contextmanager
def first_process_first() -> Iterator[None]:
    """The first process does what is inside, then the others, who find it done."""
    if jax.process_index() > 0:
        multihost_utils.sync_global_devices("the first process is done")
    yield
    if jax.process_index() == 0 and jax.process_count() > 1:
        multihost_utils.sync_global_devices("the first process is done")


def is_first() -> bool:
    """Whether this process speaks for all: it prints, draws and writes what is written once."""
    return jax.process_index() == 0


class StopRequest:
    """SIGTERM and Ctrl-C ask for a save and an orderly end; a second Ctrl-C ends at once.

    Used as a context; `agreed()` is the same on every process, so that all save the same step.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True

    def agreed(self) -> bool:
        """Whether any process was asked to stop."""
        if jax.process_count() == 1:
            return self._asked
        return bool(multihost_utils.process_allgather(np.array(self._asked)).any())
