"""The devices that JAX sees, and accelerators of this machine that it does not see."""

import os
from dataclasses import dataclass
from pathlib import Path

from t5x_lite.errors import one_line
from t5x_lite.planner.gpu_compiler import GPU_FILE

TPU_FILES = (Path("/dev/vfio/0"), Path("/dev/accel0"))
"""Device files of a TPU VM, of newer and older TPUs."""


@dataclass(frozen=True)
class Devices:
    """The devices of this process.

    Attributes:
        platform: `cpu`, `gpu` or `tpu`; an empty string if JAX cannot start.
        kind: the model of the device, such as `TPU v5p`.
        count: number of devices.
        memory_bytes: memory of one device, or of the machine for CPUs; None if it is not known.
        problem: why JAX cannot start, or which accelerator it leaves unused; an empty string if nothing is wrong.
    """

    platform: str = ""
    kind: str = ""
    count: int = 0
    memory_bytes: int | None = None
    problem: str = ""


def find_devices() -> Devices:
    """Start JAX in this process, and return its devices."""
    import jax

    from t5x_lite.parallel.memory import host_memory

    try:
        devices = jax.devices()
    except Exception as error:  # of the plugins of every vendor
        reason = one_line(error)
        return Devices(problem=f"JAX finds no device: {reason}")
    device = devices[0]
    if device.platform == "cpu":
        memory = host_memory()
    else:
        memory = (device.memory_stats() or {}).get("bytes_limit")
    return Devices(device.platform, device.device_kind, len(devices), memory, unused_accelerator(device.platform))


def unused_accelerator(platform: str) -> str:
    """Return which accelerator of this machine JAX leaves unused; an empty string if there is none.

    `JAX_PLATFORMS=cpu` is a choice and no problem.
    """
    if platform != "cpu" or os.environ.get("JAX_PLATFORMS", "") == "cpu":
        return ""
    if GPU_FILE.exists():
        return "this machine has an NVIDIA GPU, but JAX uses the CPU: pip install 't5x_lite[cuda]'"
    if any(path.exists() for path in TPU_FILES):
        return "this machine has a TPU, but JAX uses the CPU: pip install 't5x_lite[tpu]'"
    return ""
