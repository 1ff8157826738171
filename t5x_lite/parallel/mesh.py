"""The device mesh, and where weights, state and batches lie on it."""

import math
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from t5x_lite.checkpoint import flatten_names
from t5x_lite.config import MeshConfig
from t5x_lite.errors import UserError
from t5x_lite.models.layers import Axes
from t5x_lite.models.sharding import AXES, RULES, spec


def make_mesh(config: MeshConfig, devices: list[Any] | None = None) -> Mesh:
    """The mesh over all devices, an axis of -1 taking what is left.

    Raises:
        UserError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in AXES]
    known = math.prod(size for size in sizes if size > 0)
    left, rest = divmod(len(devices), known)
    if rest or (left != 1 and -1 not in sizes):
        divisors = ", ".join(str(n) for n in range(1, len(devices) + 1) if len(devices) % n == 0)
        wanted = " × ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True) if size != 1)
        raise UserError(
            f"mesh: {wanted} does not fill {len(devices)} devices; sizes that divide them are {divisors}, "
            "and one axis may be -1 to take what is left"
        )
    shape = tuple(left if size == -1 else size for size in sizes)
    slices = len({getattr(device, "slice_index", None) for device in devices})
    if shape[0] % slices:
        raise UserError(
            f"mesh: data {shape[0]} is not a multiple of the {slices} slices; slices share nothing but data"
        )
    if slices == 1:
        placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        inside, between = (shape[0] // slices, *shape[1:]), (slices, *[1] * (len(AXES) - 1))
        placed = mesh_utils.create_hybrid_device_mesh(inside, between, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def sharding_of(mesh: Mesh, axes: Axes, shape: tuple[int, ...]) -> NamedSharding:
    """The sharding of one weight; an axis more than `axes` names is the stack of layers."""
    names = ("layers",) * (len(shape) - len(axes.names)) + axes.names
    return NamedSharding(mesh, spec(mesh.shape, names, shape))


def shardings(mesh: Mesh, axes: Any, shapes: Any) -> Any:
    """`sharding_of` for a tree of weights."""
    return jax.tree.map(lambda a, s: sharding_of(mesh, a, s.shape), axes, shapes)


def shape_structs(shapes: Any, shardings: Any) -> Any:
    """Shapes of arrays with the shardings that they have, or are to have."""
    return jax.tree.map(lambda s, own: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=own), shapes, shardings)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over every axis that splits it."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are cut."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def local_rows(mesh: Mesh, batch_size: int, key: str = "train.batch_size") -> np.ndarray:
    """Rows of a global batch that this process must supply, in ascending order; `key` is the setting to blame.

    Raises:
        UserError: the rows do not divide over the mesh.
    """
    shards = batch_shards(mesh)
    if batch_size % shards:
        raise UserError(
            f"{key} {batch_size} does not divide over the {shards} devices of the mesh axes data, fsdp and expert; "
            f"take a multiple of {shards} or a smaller mesh"
        )
    places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    rows = {row for index in places.values() if index for row in range(batch_size)[index[0]]}
    return np.array(sorted(rows))


def to_global(mesh: Mesh, batch: Any, batch_size: int) -> Any:
    """One global array per feature from the rows that each process holds."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows, (batch_size, *rows.shape[1:]))
        for name, rows in batch.items()
    }


def batch_shapes(mesh: Mesh, example: Any, batch_size: int) -> Any:
    """Shapes and shardings of a global batch of rows like `example`, for compiling."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((batch_size, *value.shape), value.dtype, sharding=sharding)
        for name, value in example.items()
    }


def state_shardings(mesh: Mesh, axes: Any, shapes: Any) -> Any:
    """Shardings of a whole train state: what belongs to a weight and has its shape is sharded like it (ZeRO).

    Everything else (counts, factored moments) is small and lies whole on every device.
    """
    every = flatten_names(axes)
    weights = {
        (name, leaf.shape): sharding_of(mesh, every[name], leaf.shape)
        for part in (shapes.params, shapes.frozen)
        for name, leaf in flatten_names(part).items()
    }

    def of(path: Any, leaf: Any) -> NamedSharding:
        parts = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
        spans = ((start, stop) for start in range(len(parts)) for stop in range(len(parts), start, -1))
        for start, stop in spans:
            sharding = weights.get((".".join(parts[start:stop]), leaf.shape))
            if sharding is not None:
                return sharding
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(of, shapes)
