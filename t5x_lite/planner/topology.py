"""The devices of a pod that is not here: a TPU topology that libtpu describes, or a number of GPUs."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
from jax.experimental import topologies

from t5x_lite.errors import UserError, one_line, suggest
from t5x_lite.parallel.config import GPUS, gpu_count
from t5x_lite.planner import gpu_compiler

TPUS = ("v4", "v5e", "v5p", "v5", "v6e", "tpu7x")
"""Chips as libtpu names them in its topologies; v5 is v5p."""


@dataclass(frozen=True)
class Pod:
    """Devices to plan for.

    Attributes:
        devices: devices to build the mesh of. For GPUs without their compiler, simulated CPU devices stand in.
        device_kind: kind of the devices to plan for, as JAX names it.
        platform: platform of the devices to plan for.
        can_compile: whether their compiler is here and is to be asked.
    """

    devices: Sequence[jax.Device]
    device_kind: str
    platform: str
    can_compile: bool = True


def find_pod(topology: str, slices: int, *, can_compile: bool = True) -> Pod:
    """Return the devices of a topology such as v5p:4x4x4 or h100:64.

    Args:
        topology: chips and their shape as libtpu names them, or a key of `GPUS` and the number of GPUs.
        slices: number of TPU slices of that shape.
        can_compile: whether programs may be compiled for them.

    Raises:
        UserError: libtpu is not installed, or does not know the topology; the number of GPUs is missing.
    """
    count = gpu_count(topology)
    if count is None:
        pod = _find_tpus(topology, slices)
        return replace(pod, can_compile=can_compile)
    name = topology.partition(":")[0].lower()
    return _find_gpus(GPUS[name], count, can_compile=can_compile)


def _find_gpus(kind: str, count: int, *, can_compile: bool) -> Pod:
    if not can_compile or not gpu_compiler.is_installed():
        return Pod(jax.devices("cpu")[:count], kind, "gpu", can_compile=False)
    local_gpus = [device for device in jax.devices() if device.device_kind.startswith(kind)]
    if len(local_gpus) == count:
        return Pod(local_gpus, local_gpus[0].device_kind, "gpu")
    return Pod(gpu_compiler.compile_only_gpus(kind, count), kind, "gpu")


def _find_tpus(topology: str, slices: int) -> Pod:
    name = topology.partition(":")[0]
    if name not in TPUS:
        chips = (*TPUS, *GPUS)
        hint = suggest(name, chips) or f"; chips are {', '.join(chips)}"
        raise UserError(f"--topology {topology}: there is no chip {name}{hint}; write for example v5p:4x4x4 or h100:64")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"--topology {topology}: plan needs the compiler for TPUs: pip install 't5x_lite[tpu]'")
    options: dict[str, str | int] = {}
    if slices > 1:
        options["num_slices"] = slices
    if topology.startswith("v4"):
        options["chip_config_name"] = "megacore"  # JAX counts a v4 chip as one device
    try:
        devices: list[jax.Device] = topologies.get_topology_desc(topology, "tpu", **options).devices
    except Exception as error:  # libtpu raises nothing narrower
        reason = one_line(error)
        raise UserError(
            f"--topology {topology}: not known to libtpu: {reason}; write for example v5p:4x4x4, v5e:16x16, v6e:8x8, "
            "or h100:64"
        ) from None
    return Pod(devices, devices[0].device_kind, devices[0].platform)
