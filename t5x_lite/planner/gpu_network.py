"""The least time of a collective of GPUs on NVLink and the network (Austin et al. 2025, part 12)."""

import math

import numpy as np
from jax.sharding import Mesh

from t5x_lite.integers import ceil_div
from t5x_lite.parallel.chips import Chip


def gpu_link_seconds(kind: str, axes: tuple[str, ...], sent: float, mesh: Mesh, chip: Chip) -> dict[str, float]:
    """Return the least time that collectives of one kind take on each link, if nothing else uses it.

    Each GPU has a port of the network of its own, and a group uses the ports of all of its members. NVLink and the
    network work at the same time, and the slower one counts.

    * Of what is gathered, a host receives once what the other hosts have; its members share it over NVLink. So it is
      with sums, which go the other way. Switches that sum in the network (SHARP) are not counted.
    * In an all-to-all each GPU sends its own shares to the other hosts.
    * A permute is one transfer to another GPU, of another host if the group has several.

    Args:
        kind: one of `hlo.COLLECTIVES`.
        axes: mesh axes of the groups.
        sent: bytes that a GPU sends on a ring of its group.
        mesh: the devices.
        chip: their links.
    """
    hosts, members = group_shape(axes, mesh, chip)
    devices = hosts * members
    if kind == "collective-permute":
        if hosts > 1:
            return {"NVLink": 0.0, "network": sent / chip.network_rate}
        return {"NVLink": sent / chip.link_rate, "network": 0.0}
    array_bytes = sent * devices / (devices - 1)
    if "all-to-all" in kind:
        network_bytes = array_bytes * (hosts - 1) / hosts
        link_bytes = array_bytes * (members - 1) / devices
    else:
        network_bytes = array_bytes * (hosts - 1) / devices
        link_bytes = array_bytes * (members - 1) / members
    return {"NVLink": link_bytes / chip.link_rate, "network": network_bytes / chip.network_rate}


def group_shape(axes: tuple[str, ...], mesh: Mesh, chip: Chip) -> tuple[int, int]:
    """Return the hosts that a group of devices along some mesh axes is on, and its members on each of them.

    Of groups that are on different numbers of hosts it is the one on most.
    """
    assert chip.gpus_per_host is not None
    # Devices are numbered host by host, with the last axis of the mesh varying fastest.
    numbers = np.arange(mesh.size).reshape(tuple(mesh.shape.values()))
    inside = [number for number, axis in enumerate(mesh.shape) if axis in axes]
    size = math.prod(mesh.shape[axis] for axis in axes)
    groups = np.moveaxis(numbers, inside, range(-len(inside), 0)).reshape(-1, size)
    hosts = max(len(np.unique(group)) for group in groups // chip.gpus_per_host)
    return hosts, ceil_div(size, hosts)
