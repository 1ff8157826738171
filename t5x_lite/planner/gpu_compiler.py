"""XLA's compiler for NVIDIA GPUs on a machine without one. JAX is imported inside the functions: see `prepare`."""

import contextlib
import importlib.util
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t5x_lite.parallel.chips import GPUS_PER_HOST
from t5x_lite.parallel.job_environment import GPU_MEMORY_FRACTION
from t5x_lite.planner.gpu_target import CUDNN_VERSION, GPU_TARGETS

if TYPE_CHECKING:
    import jax

PLUGINS = ("xla_cuda13", "xla_cuda12")
"""JAX's plugins for NVIDIA GPUs, each with the compiler, in the namespace package `jax_plugins`."""
MEMORY_LIMIT = "xla_gpu_memory_limit_slop_factor"
"""Memory that the scheduler may use while it overlaps collectives, in percent of the memory that it counts with."""
ATTACHED_MEMORY_LIMIT = round(95 * GPU_MEMORY_FRACTION / 0.8)
"""Of an attached GPU it counts with what JAX takes of it, and of any other one with 80 % of all (XLA's
gpu_hlo_schedule.cc); the default is 95 % of that."""
GPU_FILE = Path("/dev/nvidiactl")
"""Device file of NVIDIA's driver."""


def is_installed() -> bool:
    """Return whether the compiler is installed."""
    if importlib.util.find_spec("jax_plugins") is None:
        return False
    return any(importlib.util.find_spec(f"jax_plugins.{plugin}") is not None for plugin in PLUGINS)


def accept_missing_cuda() -> None:
    """Let JAX start without complaint if the compiler is installed, but neither a GPU nor CUDA's libraries.

    Call this before JAX is imported.
    """
    if not GPU_FILE.exists():
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")


def prepare(count: int, *, can_compile: bool) -> None:
    """Prepare this process for a plan of GPUs: quiet the compiler, or simulate a CPU device for each GPU without it.

    Call this before JAX is imported.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # the compiler notes that it finds no driver
    if can_compile and is_installed():
        return
    if can_compile:
        print("plan: by formula; pip install 't5x_lite[gpu-compiler]' has the compiler for GPUs", file=sys.stderr)
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}".strip()


def absent_gpus(kind: str, count: int) -> "Sequence[jax.Device]":
    """Return GPUs that programs can be compiled for, in hosts of eight or, if these would not be full, of fewer.

    Args:
        kind: a key of `GPU_TARGETS`.
        count: number of GPUs.
    """
    from jax.experimental import topologies

    on_a_host = math.gcd(count, GPUS_PER_HOST)
    target = GPU_TARGETS[kind]
    shape = f"1x{count // on_a_host}x{on_a_host}"
    devices: Sequence[jax.Device] = topologies.get_topology_desc(
        platform="cuda", target_config=target.text, topology=shape
    ).devices
    return devices


def _is_absent_gpu(device: "jax.Device") -> bool:
    import jax

    return device.platform == "gpu" and device not in jax.devices()


def options_for(device: "jax.Device") -> dict[str, int]:
    """Return options with which the compiler treats a planned GPU as an attached one; none for other devices."""
    return {MEMORY_LIMIT: ATTACHED_MEMORY_LIMIT} if _is_absent_gpu(device) else {}


@contextlib.contextmanager
def target_answers_for_cudnn(device: "jax.Device") -> Iterator[None]:
    """Let a planned GPU answer when JAX asks the attached one for its cuDNN and its generation.

    JAX does so when it traces attention by cuDNN, even for a device that is not attached.
    """
    from jax._src.cudnn import fused_attention_stablehlo as fused_attention

    if not _is_absent_gpu(device):
        yield
        return
    [target] = [target for kind, target in GPU_TARGETS.items() if device.device_kind.startswith(kind)]
    major, minor = CUDNN_VERSION
    answers = {
        "check_cudnn_version": lambda: 10000 * major + 100 * minor,
        "check_compute_capability": lambda least: target.compute_capability >= float(least),
    }
    originals = {name: getattr(fused_attention, name) for name in answers}
    for name, answer in answers.items():
        setattr(fused_attention, name, answer)
    try:
        yield
    finally:
        for name, function in originals.items():
            setattr(fused_attention, name, function)
