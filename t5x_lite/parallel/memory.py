"""The memory that this process can use: that of its accelerators, or of the machine if it computes on the CPU."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import jax
from jax.sharding import Mesh

from t5x_lite.errors import UserError
from t5x_lite.models.remat_policy import PINNED_HOST
from t5x_lite.progress import format_si

CGROUPS = (("", "/sys/fs/cgroup", "memory.max"), ("memory", "/sys/fs/cgroup/memory", "memory.limit_in_bytes"))
"""The controller's name in /proc/self/cgroup, the folder and the file of the limit: of version 2, and of version 1."""


@dataclass(frozen=True)
class Memory:
    """Memory that arrays are allocated in.

    Attributes:
        place: whose it is, for messages.
        size: bytes; None if unknown.
        devices: devices of this process that share it.
    """

    place: str
    size: int | None
    devices: int

    def lacks(self, bytes_per_device: float) -> bool:
        """Return whether arrays of this size on each device certainly do not fit."""
        return self.size is not None and bytes_per_device * self.devices > self.size

    def check(self, bytes_per_device: float, subject: str, remedy: str) -> None:
        """Refuse what certainly does not fit.

        Args:
            bytes_per_device: bytes on each device.
            subject: what takes the memory, in the plural.
            remedy: what to do.

        Raises:
            UserError: it does not fit.
        """
        if self.lacks(bytes_per_device):
            raise UserError(f"{subject} take at least {self.describe(bytes_per_device)}; {remedy}")

    def describe(self, bytes_per_device: float) -> str:
        """Return the memory that is needed and the memory that is available."""
        needed = f"{format_si(bytes_per_device * self.devices)}B"
        return f"{needed}, but {self.place} has {format_si(self.size or 0)}B of memory"


def local_memory(mesh: Mesh) -> Memory:
    """Return the memory of each device of this process, or of the machine if the devices are CPUs."""
    device = mesh.local_devices[0]
    if device.platform == "cpu":
        return Memory("this machine", host_memory(), len(mesh.local_devices))
    statistics = device.memory_stats() or {}
    return Memory(f"each {device.device_kind}", statistics.get("bytes_limit"), 1)


def check_host_offload(mesh: Mesh) -> None:
    """Refuse activations in host memory (`model.remat: offload`) on devices that cannot copy to it.

    Devices of a pod that is not here are not asked: their compiler says so.

    Raises:
        UserError: JAX knows no pinned host memory of the devices.
    """
    device = mesh.devices.flat[0]
    if device in jax.devices() and PINNED_HOST not in memory_kinds(device):
        raise UserError(
            f"model.remat offload: {device.device_kind} has no {PINNED_HOST} memory in JAX; take full, or auto"
        )


def memory_kinds(device: jax.Device) -> set[str]:
    """Return the kinds of memory that a device of this machine reaches."""
    return {memory.kind for memory in device.addressable_memories()}


def host_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory and swap that this process can use; None if the system does not tell.

    Args:
        root: folder of the system's files; another than `/` is for tests.
    """
    sizes: dict[str, int] = {}
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            name, value = line.split()[:2]
            sizes[name] = 1024 * int(value)
    if "MemTotal:" not in sizes:
        return None
    return min([sizes["MemTotal:"], *_cgroup_limits(root)]) + sizes.get("SwapTotal:", 0)


def _cgroup_limits(root: Path) -> Iterator[int]:
    """Yield the limits of the process's control group and of all groups above it."""
    groups: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            groups.update(dict.fromkeys(controllers.split(","), group))
    for controller, folder, file in CGROUPS:
        innermost = PurePosixPath(groups.get(controller, "/"))
        for ancestor in (innermost, *innermost.parents):
            # A container may see its group as the root although its name is another one: the root is read in any case.
            with contextlib.suppress(OSError, ValueError):  # there is no such file, or it holds `max`
                yield int((root / folder[1:] / str(ancestor)[1:] / file).read_text())
