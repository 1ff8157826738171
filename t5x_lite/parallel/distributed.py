"""Several processes as one program: how they start, notice that one is lost, and stop together."""

import importlib.util
import itertools
import os
import re
import signal
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
from jax._src import distributed as jax_distributed
from jax.experimental import multihost_utils

from t5x_lite import local_copies
from t5x_lite.errors import ProcessLost, UserError
from t5x_lite.parallel.job_environment import check_coordinator
from t5x_lite.storage import absolute, join

HEARTBEAT_SECONDS = 2.0
"""Time between two heartbeats of a process."""
MOST_FAILED_HEARTBEATS = 5
"""Heartbeats in a row that could not be sent, after which a process takes the job as ended."""
BARRIER_DAYS = 7
"""Longest time that the other processes wait for the first one, which may tokenise a large corpus."""
_barriers = itertools.count()
"""Numbers of the barriers of this process, which name them."""
_steps_of_process = itertools.count(1)
"""Numbers of the steps of this process, over all its runs."""
_HEARTBEATS = "t5x_lite/alive/"
"""Folder of the heartbeats in the job's key-value store."""
_EXIT_CODES = "t5x_lite/exit_code/"
"""Folder of the exit codes of processes that have found wrong input, in the job's key-value store."""
_is_ending = threading.Event()
"""Set when this process has found wrong input and is about to end."""


def initialize(cache_dir: str) -> None:
    """Join the processes of the job, if it has several, and cache compiled programs in `cache_dir/compiled`.

    The job is named by `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, or is one that JAX detects:
    Slurm, Open MPI, a TPU pod, GKE. `JAX_COMPILATION_CACHE_DIR` names another cache.
    """
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        check_coordinator("JAX_COORDINATOR_ADDRESS", os.environ["JAX_COORDINATOR_ADDRESS"])
        processes = _read_number("JAX_NUM_PROCESSES")
        process_id = _read_number("JAX_PROCESS_ID")
        if not 0 <= process_id < processes:
            raise UserError(
                f"JAX_PROCESS_ID {process_id}: of {processes} processes (JAX_NUM_PROCESSES), counted from 0"
            )
        jax.distributed.initialize(num_processes=processes, process_id=process_id)
    elif _is_in_cluster():
        jax.distributed.initialize()
    _configure_simulated_devices()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", join(absolute(cache_dir), "compiled"))
    # `process_count` comes last, because it starts the devices with the settings above.
    if jax.process_count() > 1:
        threading.Thread(target=_follow_job, name="heartbeat", daemon=True).start()


def _read_number(variable: str) -> int:
    """Return the number that an environment variable holds.

    Raises:
        UserError: it is missing, or no number.
    """
    value = os.environ.get(variable)
    if value is None:
        raise UserError(f"JAX_COORDINATOR_ADDRESS is set, and {variable} is not; set both, or neither")
    if not value.isdecimal():
        raise UserError(f"{variable}={value} is not a number")
    return int(value)


def _is_in_cluster() -> bool:
    """Return whether this process is one of several that a cluster has started.

    Raises:
        UserError: a Slurm job has several tasks, and this process is none of them.
    """
    for name in ("OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS"):
        if name in os.environ and _read_number(name) > 1:
            if name == "SLURM_NTASKS" and "SLURM_STEP_NODELIST" not in os.environ:
                raise UserError(
                    f"SLURM_NTASKS is {os.environ[name]}, and srun has not started this process, which cannot find the "
                    "others; start it by srun, or unset SLURM_NTASKS for a single process"
                )
            return True
    if "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
        return True
    # A TPU VM may be one of several; only its metadata server knows, and JAX asks it. libtpu may be installed on a
    # machine without a TPU, so the device files decide.
    if not os.environ.get("JAX_PLATFORMS", "tpu").startswith("tpu"):
        return False
    if any(Path("/dev").glob("accel*")):
        return True
    return importlib.util.find_spec("libtpu") is not None and Path("/dev/vfio/0").exists()


def _configure_simulated_devices() -> None:
    """Let the simulated devices of one CPU wait for each other without a deadlock.

    They share one pool of threads, as many as there are cores. A collective would wait forever if a copy for a
    checkpoint, or another program, occupied the thread of a device that the collective waits for.
    """
    simulated = re.search(r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    if simulated:
        os.environ.setdefault("NPROC", str(4 * int(simulated[1])))
        jax.config.update("jax_cpu_enable_async_dispatch", False)


def _key_value_store() -> Any:
    """Return the client of the job's key-value store. JAX keeps it private; Orbax, Grain and MaxText use it too."""
    return jax_distributed.global_state.client


def _follow_job() -> None:
    """Send heartbeats until the job ends, and end this process if another one has found wrong input."""
    store = _key_value_store()
    key = f"{_HEARTBEATS}{jax.process_index()}"
    failures = 0
    for number in itertools.count():
        try:
            store.key_value_set(key, str(number), allow_overwrite=True)
            exit_codes = store.key_value_dir_get(_EXIT_CODES)
        except jax.errors.JaxRuntimeError:
            failures += 1
            if failures == MOST_FAILED_HEARTBEATS:
                return  # the store has ended with the job
        else:
            failures = 0
            if exit_codes and not _is_ending.is_set():
                _end_with_process(*exit_codes[0])
        time.sleep(HEARTBEAT_SECONDS)


def _end_with_process(key: str, exit_code: str) -> None:
    """End this process with the exit code of another one, which has printed the reason.

    Does nothing if this process finds the reason too, as all do that diverge together: it may have files to write.

    Args:
        key: the key of the exit code in the job's store. It ends with the number of the other process.
        exit_code: the exit code.
    """
    time.sleep(HEARTBEAT_SECONDS)
    if _is_ending.is_set():
        return
    local_copies.finish()
    other = key.rpartition("/")[2]
    print(f"t5x-lite: process {jax.process_index()} ends with process {other}", file=sys.stderr, flush=True)
    if jax.process_index() == 0:
        _wait_for_others()
    os._exit(int(exit_code))


def _wait_for_others() -> None:
    """Wait until all other processes have read the exit code and ended: the store ends with the first process."""
    time.sleep(3 * HEARTBEAT_SECONDS)


def silent_processes() -> list[int]:
    """Return the processes that send no heartbeat for three periods. Blocks for that long."""
    store = _key_value_store()
    try:
        before = dict(store.key_value_dir_get(_HEARTBEATS))
        time.sleep(3 * HEARTBEAT_SECONDS)
        after = dict(store.key_value_dir_get(_HEARTBEATS))
    except jax.errors.JaxRuntimeError:
        return [0]  # the store is in the first process
    silent = []
    for process in range(jax.process_count()):
        key = f"{_HEARTBEATS}{process}"
        if key not in after or after[key] == before.get(key):
            silent.append(process)
    return silent


@contextmanager
def abort_together() -> Iterator[None]:
    """End this process at once after an error inside, if it is one of several; the error names processes that are lost.

    An orderly exit would wait for the other processes, which wait for this one. After wrong input, which one process
    may find alone, the others end with the same exit code. When this process ends otherwise, they see that.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if _is_caused_by_jax(error):
            error = _explain_lost_processes() or error
        local_copies.finish()
        if isinstance(error, UserError):
            message = " ".join(local_copies.with_urls(str(error)).splitlines())
            print(f"t5x-lite: {message}", file=sys.stderr, flush=True)
            _end_others(error)
            os._exit(error.exit_code)
        traceback.print_exception(error)
        os._exit(1)


def _end_others(error: UserError) -> None:
    """Let the other processes end with the exit code of an error, unless it is that one of them is lost."""
    _is_ending.set()
    if not isinstance(error, ProcessLost):
        with suppress(jax.errors.JaxRuntimeError):  # the store has ended with the first process
            key = f"{_EXIT_CODES}{jax.process_index()}"
            _key_value_store().key_value_set(key, str(error.exit_code), allow_overwrite=True)
    _wait_for_others()


def _is_caused_by_jax(error: BaseException | None) -> bool:
    """Return whether an error of JAX's runtime is an error or its cause, as of a checkpoint that was not saved."""
    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError):
            return True
        error = error.__cause__
    return False


def check_same_on_all_processes(value: str, differing: str) -> None:
    """Check that all processes have opened the same input. All make this call together.

    Unlike `multihost_utils.assert_equal`, it raises in every process, and says which ones differ.

    Args:
        value: describes the input.
        differing: begins the message if the processes have different values.

    Raises:
        UserError: with the processes whose value is not that of process 0.
    """
    wait_for_all_processes("input is open")
    checksums = np.asarray(multihost_utils.process_allgather(np.uint32(zlib.crc32(value.encode())))).reshape(-1)
    others = np.flatnonzero(checksums != checksums[0])
    if len(others):
        raise UserError(f"{differing}, in process {', '.join(map(str, others))} other than in process 0")


def _explain_lost_processes() -> ProcessLost | None:
    lost = silent_processes()
    if not lost:
        return None
    numbers = ", ".join(map(str, lost))
    subject = f"process {numbers} is" if len(lost) == 1 else f"processes {numbers} are"
    return ProcessLost(
        f"process {jax.process_index()} of {jax.process_count()}: {subject} gone (killed, preempted or crashed: see "
        "the log there); start all processes again to resume from the last checkpoint"
    )


@contextmanager
def main_process_first() -> Iterator[None]:
    """Run the code inside in the first process, then in the others, which can use what the first has done."""
    if jax.process_index() > 0:
        wait_for_all_processes("the first process is done")
    yield
    if jax.process_index() == 0:
        wait_for_all_processes("the first process is done")


def wait_for_all_processes(name: str) -> None:
    """Wait until all processes have made this call, for days if need be: a collective would fail within minutes."""
    if jax.process_count() > 1:
        timeout_ms = BARRIER_DAYS * 24 * 3600 * 1000
        _key_value_store().wait_at_barrier(f"t5x_lite/{name} {next(_barriers)}", timeout_ms)


@contextmanager
def handle_signals(handler: Callable[[int, FrameType | None], object], *signals: int) -> Iterator[None]:
    """Handle signals by `handler` inside. Does nothing outside the main thread, where Python has no signal handlers."""
    previous_handlers = {}
    if threading.current_thread() is threading.main_thread():
        for number in signals:
            previous_handlers[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, previous in previous_handlers.items():
            signal.signal(number, previous)


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and Ctrl-C into a request to save and stop; a second Ctrl-C stops at once.

    Yields a function to call after each step. It returns whether all processes shall stop after this step.
    A signal to one of several processes is enough: JAX's own handler of SIGTERM informs the others, and all stop after
    the same step without a collective in every step.
    """
    is_requested = False
    has_reached_stop = False
    is_single_process = jax.process_count() == 1

    def request_stop(number: int, frame: FrameType | None) -> None:
        nonlocal is_requested
        if is_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        is_requested = True
        if not is_single_process:
            os.kill(os.getpid(), signal.SIGTERM)

    def should_stop() -> bool:
        if is_single_process:
            return is_requested
        # JAX compares these numbers for equality, from 1: a signal before the first step of a resumed run would be lost
        # with the number of the step. Its answer is true for one step, in which a loss spike may send the run back.
        nonlocal has_reached_stop
        has_reached_stop |= multihost_utils.reached_preemption_sync_point(next(_steps_of_process))
        return has_reached_stop

    signals = [signal.SIGINT]
    if is_single_process:
        signals.append(signal.SIGTERM)
    with handle_signals(request_stop, *signals):
        yield should_stop
