"""The share of this machine's GPUs or processor cores that each of several runs at the same time receives."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field

GPU_MEMORY_FRACTION = 0.9
"""Share of the memory of a GPU that its runs divide among themselves."""


@dataclass(frozen=True)
class DeviceShare:
    """The environment variables of a run that select its GPUs, and its cores; all cores if there are none."""

    variables: Mapping[str, str] = field(default_factory=dict)
    cores: frozenset[int] = frozenset()


def device_share(slot: int, jobs: int, environment: Mapping[str, str]) -> DeviceShare:
    """Return what one of `jobs` slots runs on.

    Several GPUs are dealt out to the slots. With fewer GPUs than slots, slots share the memory of a GPU. Without a GPU,
    the cores are dealt out.
    """
    gpus = _visible_gpus(environment)
    if not gpus:
        return _core_share(slot, jobs)
    if jobs <= len(gpus):
        return DeviceShare({"CUDA_VISIBLE_DEVICES": ",".join(gpus[slot::jobs])})
    slots_per_gpu = -(-jobs // len(gpus))
    variables = {
        "CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)],
        "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{GPU_MEMORY_FRACTION / slots_per_gpu:.3f}",
    }
    return DeviceShare(variables)


def _core_share(slot: int, jobs: int) -> DeviceShare:
    cores = sorted(os.sched_getaffinity(0))
    if jobs == 1 or jobs > len(cores):
        return DeviceShare()
    return DeviceShare(cores=frozenset(cores[slot::jobs]))


def _visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """Return the ids of the GPUs that a run in this environment would see."""
    if environment.get("JAX_PLATFORMS") == "cpu" or shutil.which("nvidia-smi") is None:
        return []
    if "CUDA_VISIBLE_DEVICES" in environment:
        return [gpu for gpu in environment["CUDA_VISIBLE_DEVICES"].split(",") if gpu]
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    gpus: list[str] = []
    for line in listing.splitlines():
        if line.startswith("GPU "):
            gpus.append(str(len(gpus)))
    return gpus
