"""XLA's compiler for NVIDIA GPUs on a machine without one. JAX is imported inside the functions: see `prepare`."""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t5x_lite.parallel.chips import GPUS_PER_HOST
from t5x_lite.parallel.job_environment import reserve_gpu_memory
from t5x_lite.planner.gpu_target import CUDNN_VERSION, gpu_target

if TYPE_CHECKING:
    import jax

PLUGINS = ("xla_cuda13", "xla_cuda12")
"""JAX's plugins for NVIDIA GPUs, each with the compiler, in the namespace package `jax_plugins`."""
GPU_FILE = Path("/dev/nvidiactl")
"""Device file of NVIDIA's driver."""


def is_installed() -> bool:
    """Return whether the compiler is installed."""
    if importlib.util.find_spec("jax_plugins") is None:
        return False
    return any(importlib.util.find_spec(f"jax_plugins.{plugin}") is not None for plugin in PLUGINS)


def skip_cuda_check() -> None:
    """Skip JAX's check of CUDA's libraries on a machine without a GPU, where only the compiler may be installed.

    Call this before JAX is imported.
    """
    if not GPU_FILE.exists():
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")


def prepare(count: int, *, can_compile: bool) -> None:
    """Prepare this process for a plan of GPUs: quiet the compiler, or simulate a CPU device for each GPU without it.

    Call this before JAX is imported.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # the compiler notes that it finds no driver
    reserve_gpu_memory()  # an attached GPU is planned as `train` uses it
    if can_compile and is_installed():
        return
    if can_compile:
        print("plan: by formula; pip install 't5x_lite[gpu-compiler]' has the compiler for GPUs", file=sys.stderr)
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}".strip()


def compile_only_gpus(kind: str, count: int) -> "Sequence[jax.Device]":
    """Return GPUs that are not here, for which programs can be compiled but not run.

    Args:
        kind: first words of their `device_kind` in JAX; see `gpu_target`.
        count: number of GPUs, of one host or of full ones.
    """
    from jax.experimental import topologies

    on_a_host = min(count, GPUS_PER_HOST)
    shape = f"1x{count // on_a_host}x{on_a_host}"
    topology = topologies.get_topology_desc(platform="cuda", target_config=gpu_target(kind).text_proto, topology=shape)
    devices: Sequence[jax.Device] = topology.devices
    return devices


def _is_compile_only_gpu(device: "jax.Device") -> bool:
    import jax

    return device.platform == "gpu" and device not in jax.devices()


@contextlib.contextmanager
def assume_cudnn(device: "jax.Device") -> Iterator[None]:
    """Assume cuDNN for a GPU that is not here, and that GPU's compute capability.

    When JAX traces attention by cuDNN, it asks the attached GPU for both, even if it compiles for another one.
    """
    from jax._src.cudnn import fused_attention_stablehlo as fused_attention

    if not _is_compile_only_gpu(device):
        yield
        return
    target = gpu_target(device.device_kind)
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
