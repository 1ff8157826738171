"""Several processes as one program, and how a process is asked to stop."""

import contextlib
import importlib.util
import itertools
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax._src import distributed as internal
from jax.experimental import multihost_utils

from t5x_lite.errors import ProcessLost, UserError


def initialize(cache_dir: Path) -> None:
    """Join the processes of the job, if it has several, and keep compiled programs in `cache_dir/compiled`.

    A job is known by `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, or is one that JAX finds by
    itself: Slurm, Open MPI, a TPU pod, GKE. `JAX_COMPILATION_CACHE_DIR` names another cache.
    """
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        jax.distributed.initialize(
            num_processes=int(os.environ["JAX_NUM_PROCESSES"]), process_id=int(os.environ["JAX_PROCESS_ID"])
        )
    elif _in_cluster():
        jax.distributed.initialize()
    if simulated := re.search(r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", "")):
        # Simulated devices share one pool of threads, as many as there are cores: a collective waits for ever if a
        # copy for a checkpoint or another program holds the thread of a device that it waits for.
        os.environ.setdefault("NPROC", str(4 * int(simulated[1])))
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str((cache_dir / "compiled").absolute()))
    if jax.process_count() > 1:  # asked last: the answer starts the devices, with the settings above
        threading.Thread(target=_send_heartbeats, name="heartbeat", daemon=True).start()


def _in_cluster() -> bool:
    several = any(int(os.environ.get(name, "1")) > 1 for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
    # A TPU VM does not say how many it is one of: JAX asks its metadata server. Elsewhere libtpu means nothing.
    on_a_tpu = any(Path("/dev").glob("accel*")) or (importlib.util.find_spec("libtpu") and Path("/dev/vfio/0").exists())
    wanted = os.environ.get("JAX_PLATFORMS", "tpu").startswith("tpu")
    return several or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "") or bool(on_a_tpu and wanted)


HEARTBEAT_SECONDS = 2.0
"""Time between two signs of life of a process."""


def _send_heartbeats() -> None:
    """Say again and again that this process lives.

    JAX keeps the job's key-value store private; Orbax, Grain and MaxText take it from there too.
    """
    client: Any = internal.global_state.client
    key = f"t5x_lite/alive/{jax.process_index()}"
    with contextlib.suppress(Exception):  # the job ends, and its store with it
        for number in itertools.count():
            client.key_value_set(key, str(number), allow_overwrite=True)
            time.sleep(HEARTBEAT_SECONDS)


def silent_processes() -> list[int]:
    """Processes that give no sign of life for three beats."""
    client: Any = internal.global_state.client
    try:
        before = dict(client.key_value_dir_get("t5x_lite/alive/"))
        time.sleep(3 * HEARTBEAT_SECONDS)
        after = dict(client.key_value_dir_get("t5x_lite/alive/"))
    except jax.errors.JaxRuntimeError:
        return [0]  # it holds the store
    beating = {key for key in after if after[key] != before.get(key)}
    return [n for n in range(jax.process_count()) if f"t5x_lite/alive/{n}" not in beating]


@contextmanager
def abort_together() -> Iterator[None]:
    """An error inside ends this process of several at once, so that the others see it; one of them, gone, is named.

    Leaving in order would wait for the others, who wait for this one.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if isinstance(error, jax.errors.JaxRuntimeError) and (lost := silent_processes()):
            names = f"process {lost[0]} is" if len(lost) == 1 else f"processes {', '.join(map(str, lost))} are"
            error = ProcessLost(
                f"process {jax.process_index()} of {jax.process_count()}: {names} gone (killed, preempted or crashed: "
                "see the log there); start all again, and they go on from the last checkpoint"
            )
        if isinstance(error, UserError):
            print(f"t5x-lite: {error}", file=sys.stderr, flush=True)
            time.sleep(HEARTBEAT_SECONDS)  # all may have the same to say
        else:
            traceback.print_exception(error)
        os._exit(error.exit_code if isinstance(error, UserError) else 1)


@contextmanager
def main_process_first() -> Iterator[None]:
    """The first process does what is inside, then the others, who find it done."""
    if jax.process_index() > 0:
        multihost_utils.sync_global_devices("the first process is done")
    yield
    if jax.process_index() == 0 and jax.process_count() > 1:
        multihost_utils.sync_global_devices("the first process is done")


@contextmanager
def handle_signals(handler: Callable[..., None], *signs: int) -> Iterator[None]:
    """Answer signals inside by `handler`, where that is possible: in the main thread."""
    ours = threading.current_thread() is threading.main_thread()
    before = {sign: signal.signal(sign, handler) for sign in signs if ours}
    try:
        yield
    finally:
        for sign, earlier in before.items():
            signal.signal(sign, earlier)


@contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """SIGTERM and Ctrl-C ask for a save and an orderly end; a second Ctrl-C ends at once.

    Yields whether any process was asked to stop, and all stop after this step. Of several processes one is enough:
    JAX's own handler of SIGTERM tells the others, and all stop after the same step without an exchange in every step.
    """
    asked, alone = False, jax.process_count() == 1

    def ask(number: int, _: object) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True
        if not alone:
            os.kill(os.getpid(), signal.SIGTERM)

    with handle_signals(ask, signal.SIGINT, *[signal.SIGTERM] * alone):
        yield lambda step: asked if alone else multihost_utils.reached_preemption_sync_point(step)
