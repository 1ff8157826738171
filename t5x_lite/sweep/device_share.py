"""The share of this machine's GPUs or processor cores that each of several runs at the same time receives."""

import os
import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from t5x_lite.integers import ceil_div
from t5x_lite.parallel.job_environment import GPU_MEMORY_FRACTION, gpu_memory_variable


@dataclass(frozen=True)
class DeviceShare:
    """The environment variables of a run that select its GPUs, and its cores; all cores if there are none."""

    variables: Mapping[str, str] = field(default_factory=dict)
    cores: frozenset[int] = frozenset()


def device_share(
    slot: int, jobs: int, environment: Mapping[str, str], cores: Collection[int] | None = None
) -> DeviceShare:
    """Return what one of `jobs` slots runs on.

    Several GPUs are dealt out to the slots. With fewer GPUs than slots, slots share the memory of a GPU. Without a GPU,
    the cores are dealt out.

    Args:
        slot: the slot, from 0.
        jobs: number of slots.
        environment: environment variables of the runs.
        cores: the processor cores to deal out; by default those that this process may use.
    """
    gpus = _visible_gpus(environment)
    if not gpus:
        if cores is None:
            cores = os.sched_getaffinity(0)
        return _core_share(slot, jobs, cores)
    if jobs <= len(gpus):
        return DeviceShare({"CUDA_VISIBLE_DEVICES": ",".join(gpus[slot::jobs])})
    slots_per_gpu = ceil_div(jobs, len(gpus))
    variables = {
        "CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)],
        gpu_memory_variable(environment): f"{GPU_MEMORY_FRACTION / slots_per_gpu:.3f}",
    }
    return DeviceShare(variables)


def _core_share(slot: int, jobs: int, cores: Collection[int]) -> DeviceShare:
    if jobs == 1 or jobs > len(cores):
        return DeviceShare()
    return DeviceShare(cores=frozenset(sorted(cores)[slot::jobs]))


def _visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """Return the ids of the GPUs that a run in this environment would see."""
    nvidia_smi = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if environment.get("JAX_PLATFORMS") == "cpu" or nvidia_smi is None:
        return []
    if "CUDA_VISIBLE_DEVICES" in environment:
        return [gpu for gpu in environment["CUDA_VISIBLE_DEVICES"].split(",") if gpu]
    listing = subprocess.run([nvidia_smi, "-L"], capture_output=True, text=True, check=False).stdout
    gpus: list[str] = []
    for line in listing.splitlines():
        if line.startswith("GPU "):
            gpus.append(str(len(gpus)))
    return gpus


def start_process(
    command: Sequence[str], slot: int, jobs: int, environment: Mapping[str, str], output: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start a process in a slot, with the slot's share of the devices, that writes to `output`.

    Ctrl-C does not reach it: this process stops it.
    """
    share = device_share(slot, jobs, environment)
    process = subprocess.Popen(
        command,
        env={**environment, **share.variables},
        stdout=output,
        stderr=output,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    if share.cores:
        os.sched_setaffinity(process.pid, share.cores)
    return process
