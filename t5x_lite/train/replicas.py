"""Comparison of the copies of parameters: a chip may compute wrongly without raising any error."""

from collections import defaultdict
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree, UInt32

from t5x_lite.errors import ReplicaMismatch
from t5x_lite.models.sharding import MESH_AXES
from t5x_lite.trees import flatten_names

MISMATCHES_SHOWN = 4


class ReplicaCheck:
    """Compares the copies of each shard that several devices hold.

    Args:
        mesh: the devices.
        shardings: the sharding of each parameter.
    """

    def __init__(self, mesh: Mesh, shardings: PyTree[NamedSharding]) -> None:
        self._names = list(flatten_names(shardings))
        self._devices = list(mesh.devices.flat)
        specs = tuple(sharding.spec for sharding in jax.tree.leaves(shardings))
        checksums = jax.shard_map(
            _gather_checksums, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False
        )
        self._checksums = jax.jit(checksums)

    def check(self, step: int, params: PyTree[Array]) -> None:
        """Compare all copies.

        Raises:
            ReplicaMismatch: two copies differ. The message names the parameters, and the devices in the minority; where
                no copy has the majority, as of two, all devices.
        """
        leaves = jax.tree.leaves(params)
        checksums = np.asarray(jax.device_get(self._checksums(*leaves).addressable_data(0)))
        mismatches = []
        for number, (name, array) in enumerate(zip(self._names, leaves, strict=True)):
            for copies in self._devices_by_shard(array):
                outliers = self._outliers(copies, checksums[copies, number])
                if outliers:
                    mismatches.append(f"{name} on {', '.join(outliers)}")
        if mismatches:
            raise ReplicaMismatch(
                f"step {step}: copies of the same parameters differ (silent data corruption on a device): "
                f"{'; '.join(mismatches[:MISMATCHES_SHOWN])}; the last checkpoint was made before: take out the "
                "device that computes wrongly, and run the same command to go on from it"
            )

    def _devices_by_shard(self, array: Array) -> list[list[int]]:
        """Group the positions of the devices in the mesh by the part of the array that they hold."""
        groups: dict[str, list[int]] = defaultdict(list)
        indices = array.sharding.devices_indices_map(array.shape)
        for position, device in enumerate(self._devices):
            groups[str(indices[device])].append(position)
        return list(groups.values())

    def _outliers(self, positions: Sequence[int], checksums: UInt32[np.ndarray, "copies"]) -> list[str]:
        """Return the devices whose checksum is not that of the majority; all of them if several are as frequent."""
        values, counts = np.unique(checksums, return_counts=True)
        if len(values) > 1 and np.count_nonzero(counts == counts.max()) > 1:
            return [str(self._devices[position]) for position in positions]
        majority = values[counts.argmax()]
        outliers = []
        for position, checksum in zip(positions, checksums, strict=True):
            if checksum != majority:
                outliers.append(str(self._devices[position]))
        return outliers


def _gather_checksums(*shards: Array) -> UInt32[Array, "devices arrays"]:
    """Return the sum of the bits of each array's shard on each device, modulo 2^32."""
    checksums = []
    for shard in shards:
        bits = jax.lax.bitcast_convert_type(shard, jnp.uint16 if shard.dtype.itemsize == 2 else jnp.uint32)
        checksums.append(jnp.sum(bits, dtype=jnp.uint32))
    return jax.lax.all_gather(jnp.stack(checksums), MESH_AXES)
