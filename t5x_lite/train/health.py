"""Whether all parts of a job do their share and hold the same numbers: hangs, stragglers, corrupt replicas."""

import faulthandler
import sys
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

from t5x_lite.errors import ReplicaMismatch, UserError
from t5x_lite.models.sharding import AXES
from t5x_lite.models.spec import ModelSpec
from t5x_lite.parallel.mesh import shardings
from t5x_lite.train.metrics import product_seconds
from t5x_lite.trees import flatten_names

SMALL = 2**16
"""Values of an array below which it may lie whole on every device: sharding it would cost more than it saves."""
UNSHARDED = 0.02
"""Share of the parameters that may be left whole on a mesh that shards them (MaxText: sharding_tolerance)."""
PROBE = 512
"""Side of the matrices whose product is timed on each device."""


class Watchdog:
    """Ends the process, with the stack of every thread, when nothing has moved for `minutes`.

    The first process waits a little longer: when it goes, the others end without a word.
    """

    def __init__(self, minutes: float | None) -> None:
        self._seconds = None if minutes is None else 60 * minutes + 5 * (jax.process_index() == 0)

    def moved(self) -> None:
        """Something has; the time begins anew."""
        if self._seconds is not None:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=sys.__stderr__ or sys.stderr)

    def rest(self) -> None:
        """Nothing has to move until something has again."""
        faulthandler.cancel_dump_traceback_later()


class ReplicaCheck:
    """Compares what should be equal: the copies of a shard on several devices. A chip may compute wrongly unnoticed."""

    def __init__(self, mesh: Mesh, placed: Any) -> None:
        self.names, self._devices = list(flatten_names(placed)), list(mesh.devices.flat)

        def own(*leaves: Array) -> Array:
            sums = [jnp.sum(jax.lax.bitcast_convert_type(leaf, jnp.uint32), dtype=jnp.uint32) for leaf in leaves]
            return jax.lax.all_gather(jnp.stack(sums), AXES)

        specs = tuple(leaf.spec for leaf in jax.tree.leaves(placed))
        sums = jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
        self._sums = jax.jit(sums)  # of each device and array: uint32 [devices, arrays]

    def check(self, step: int, params: Any) -> None:
        """Raise if two copies of a shard differ.

        Raises:
            Corrupt: they do; the message names the parameters and the devices in the minority.
        """
        leaves = jax.tree.leaves(params)
        sums = np.asarray(jax.device_get(self._sums(*leaves).addressable_data(0)))
        devices, wrong = self._devices, []
        for number, (name, leaf) in enumerate(zip(self.names, leaves, strict=True)):
            copies: dict[str, list[int]] = defaultdict(list)
            places = leaf.sharding.devices_indices_map(leaf.shape)
            for at, device in enumerate(devices):
                copies[str(places[device])].append(at)
            for group in copies.values():
                found, counts = np.unique(sums[group, number], return_counts=True)
                if len(found) > 1:
                    odd = [str(devices[at]) for at in group if sums[at, number] != found[counts.argmax()]]
                    wrong.append(f"{name} on {', '.join(odd)}")
        if wrong:
            raise ReplicaMismatch(
                f"step {step}: copies of the same parameters differ (a device computes or remembers wrongly): "
                f"{'; '.join(wrong[:4])}; the last checkpoint was made before: take the device out and run the same "
                "command to go on from it"
            )


class Stragglers:
    """How much longer than the others' each process's own work takes.

    In a synchronous program every process has the same time per step: the slowest makes all wait. What tells them apart
    is what each does alone: its work between the steps (data, Python), and a product on its own devices.
    """

    def __init__(self) -> None:
        self._steps, self._busy = 0, 0.0

    def add(self, seconds: float) -> None:
        """Work of this process alone in one step."""
        self._steps, self._busy = self._steps + 1, self._busy + seconds

    def scores(self) -> dict[str, float]:
        """`straggler`: the slowest process's time as a multiple of the median; and which one that is.

        All processes must call this at the same step.
        """
        probe = max(product_seconds(device, PROBE, 3) for device in jax.local_devices())
        mine = np.array([self._busy / max(self._steps, 1), probe])
        self._steps, self._busy = 0, 0.0
        every = multihost_utils.process_allgather(mine).reshape(-1, 2)
        # Differences below a millisecond are noise.
        scores = (every + 1e-3) / (np.median(every, axis=0) + 1e-3)
        process, what = np.unravel_index(scores.argmax(), scores.shape)
        return {
            "straggler": float(scores.max()),
            "straggler_process": int(process),
            "straggler_seconds": float(every[process, what]),
        }


def check_sharded(blueprint: ModelSpec, mesh: Mesh) -> None:
    """Refuse a mesh that shards parameters and leaves more than `UNSHARDED` of them whole.

    Raises:
        UserError: the arrays that lie whole on every device.
    """
    parallel = [axis for axis in ("fsdp", "tensor", "expert", "pipeline") if mesh.shape[axis] > 1]
    if not parallel:
        return
    placed, shapes = (
        flatten_names(tree) for tree in (shardings(mesh, blueprint.axes, blueprint.shapes), blueprint.shapes)
    )
    alone = (name for name, sharding in placed.items() if sharding.is_fully_replicated)
    whole = {name: shapes[name].size for name in alone if shapes[name].size >= SMALL}
    if sum(whole.values()) > UNSHARDED * blueprint.parameters:
        named = ", ".join(f"{name} {list(shapes[name].shape)}" for name in sorted(whole, key=whole.__getitem__)[::-1])
        raise UserError(
            f"mesh: {sum(whole.values()) / blueprint.parameters:.1%} of the parameters would lie whole on every device "
            f"({named}): {' and '.join(parallel)} divide none of their sizes; pad the sizes or change the mesh"
        )
