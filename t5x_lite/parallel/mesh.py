"""The device mesh, and the shardings of weights, train states and batches on it."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import numpy as np
import optax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree, Shaped

from t5x_lite.errors import UserError
from t5x_lite.models.layers import WeightAxes
from t5x_lite.models.sharding import LOGICAL_AXIS_RULES, MESH_AXES, partition_spec
from t5x_lite.parallel.config import MeshConfig
from t5x_lite.trees import flatten_names, unflatten_names

REPLICATED_SIZE = 2**16
"""Parameters of an array below which it may be replicated: sharding it would cost more than it saves."""
REPLICATED_SHARE = 0.02
"""Share of the parameters that a mesh which shards parameters may leave replicated (MaxText: sharding_tolerance)."""


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arrange devices in a mesh with the axes `MESH_AXES`.

    Args:
        config: the size of each axis; an axis of -1 takes the remaining devices.
        devices: the devices of the mesh; by default all devices of the job.

    Raises:
        UserError: the axes do not multiply to the number of devices, or slices would share another axis than `data`.
    """
    if devices is None:
        devices = jax.devices()
    shape = _mesh_shape(config, len(devices))
    data_size, *other_sizes = shape
    slices = _count_slices(devices)
    if data_size % slices:
        raise UserError(
            f"mesh: data {data_size} is not a multiple of the {slices} slices; slices can share the axis data only"
        )
    if slices == 1:
        device_grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        shape_of_slice = (data_size // slices, *other_sizes)
        shape_between_slices = (slices, *[1] * len(other_sizes))
        device_grid = mesh_utils.create_hybrid_device_mesh(
            shape_of_slice, shape_between_slices, devices, allow_split_physical_axes=True
        )
    return Mesh(device_grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _count_slices(devices: Sequence[jax.Device]) -> int:
    """Return the number of TPU slices. JAX numbers the hosts of GPUs as slices too, which any axis may span."""
    slices = {getattr(device, "slice_index", None) for device in devices if device.platform == "tpu"}
    return max(len(slices), 1)


def _mesh_shape(config: MeshConfig, device_count: int) -> tuple[int, ...]:
    """Return the size of each axis of `MESH_AXES`, with -1 replaced by the number of remaining devices."""
    sizes = {axis: getattr(config, axis) for axis in MESH_AXES}
    known_product = math.prod(size for size in sizes.values() if size > 0)
    remaining, unused = divmod(device_count, known_product)
    has_free_axis = -1 in sizes.values()
    if unused or (remaining != 1 and not has_free_axis):
        product = " × ".join(f"{axis} {size}" for axis, size in sizes.items() if size != 1)
        divisors = ", ".join(str(size) for size in range(1, device_count + 1) if device_count % size == 0)
        raise UserError(
            f"mesh: {product} does not fill {device_count} devices; sizes that divide them are {divisors}, "
            "and one axis may be -1 to take the remaining devices"
        )
    shape = []
    for size in sizes.values():
        shape.append(remaining if size == -1 else size)
    return tuple(shape)


def sharding_of(mesh: Mesh, axes: WeightAxes, shape: tuple[int, ...]) -> NamedSharding:
    """Return the sharding of one weight. A leading axis that `axes` does not name stacks layers."""
    stack_names = ("layers",) * (len(shape) - len(axes.names))
    return NamedSharding(mesh, partition_spec(mesh.shape, stack_names + axes.names, shape))


def shardings(mesh: Mesh, axes: PyTree[WeightAxes], shapes: PyTree) -> PyTree[NamedSharding]:
    """Return the sharding of every weight of a tree; see `sharding_of`.

    Args:
        mesh: the devices.
        axes: logical axes of each weight.
        shapes: arrays or `jax.ShapeDtypeStruct`s, in a tree of the same structure.
    """
    return jax.tree.map(lambda weight_axes, weight: sharding_of(mesh, weight_axes, weight.shape), axes, shapes)


def shape_structs(shapes: PyTree, array_shardings: PyTree[NamedSharding]) -> PyTree[jax.ShapeDtypeStruct]:
    """Return the shape, dtype and sharding of every array of a tree."""

    def shape_struct(array: Array | jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    return jax.tree.map(shape_struct, shapes, array_shardings)


def shard_bytes(arrays: PyTree[jax.ShapeDtypeStruct]) -> float:
    """Return the bytes of one device's shards of arrays with shardings."""
    total = 0
    for array in jax.tree.leaves(arrays):
        total += math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize
    return float(total)


def check_sharded(mesh: Mesh, axes: PyTree[WeightAxes], shapes: PyTree[jax.ShapeDtypeStruct]) -> None:
    """Check that a mesh that shards parameters leaves few of them replicated.

    Raises:
        UserError: more than `REPLICATED_SHARE` are replicated; the message names the arrays, the largest first.
    """
    sharded_axes = [axis for axis in MESH_AXES if axis != "data" and mesh.shape[axis] > 1]
    if not sharded_axes:
        return
    shapes_by_name = flatten_names(shapes)
    total_size = sum(shape.size for shape in shapes_by_name.values())
    replicated_sizes = {}
    for name, sharding in flatten_names(shardings(mesh, axes, shapes)).items():
        size = shapes_by_name[name].size
        if sharding.is_fully_replicated and size >= REPLICATED_SIZE:
            replicated_sizes[name] = size
    share = sum(replicated_sizes.values()) / total_size
    if share <= REPLICATED_SHARE:
        return
    by_size = sorted(replicated_sizes, key=replicated_sizes.__getitem__, reverse=True)
    arrays = ", ".join(f"{name} {list(shapes_by_name[name].shape)}" for name in by_size)
    raise UserError(
        f"mesh: {share:.1%} of the parameters would lie whole on every device ({arrays}): {' and '.join(sharded_axes)} "
        "divide none of their sizes; pad the sizes or change the mesh"
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: its rows are split over every axis that holds other rows."""
    return NamedSharding(mesh, PartitionSpec(LOGICAL_AXIS_RULES["batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a value that every device holds in full."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh) -> int:
    """Return the number of parts into which the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in LOGICAL_AXIS_RULES["batch"])


def check_rows(mesh: Mesh, batch_size: int, key: str) -> None:
    """Check that the rows of a batch divide over the mesh.

    Args:
        mesh: the devices.
        batch_size: number of rows of the global batch.
        key: the setting that error messages name.

    Raises:
        UserError: they do not.
    """
    shards = batch_shards(mesh)
    if batch_size % shards:
        raise UserError(
            f"{key} {batch_size} does not divide over the {shards} devices of the mesh axes data, fsdp and expert; "
            f"use a multiple of {shards} or a smaller mesh"
        )


def check_length(mesh: Mesh, seq_len: int, key: str) -> None:
    """Check that the tokens of a row divide over `context`; else each of its devices would compute whole rows.

    Args:
        mesh: the devices.
        seq_len: tokens of a row.
        key: the setting that error messages name.

    Raises:
        UserError: they do not.
    """
    shards = mesh.shape["context"]
    if seq_len % shards:
        raise UserError(
            f"{key} {seq_len} does not divide over the {shards} devices of the mesh axis context; use a multiple of "
            f"{shards} or a smaller axis"
        )


def local_rows(mesh: Mesh, batch_size: int) -> Int[np.ndarray, "rows"]:
    """Return the rows of a global batch that this process must supply, in ascending order.

    Raises:
        UserError: the rows do not divide over the mesh.
    """
    check_rows(mesh, batch_size, "train.batch_size")
    shards = []
    for index in batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values():
        if index:
            shards.append(np.arange(*index[0].indices(batch_size)))
    return np.unique(np.concatenate(shards))


def to_global(
    mesh: Mesh, batch: Mapping[str, Shaped[np.ndarray, "rows ..."]], batch_size: int
) -> dict[str, Shaped[Array, "batch ..."]]:
    """Build one global array per feature from the rows that each process holds."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows, (batch_size, *rows.shape[1:]))
        for name, rows in batch.items()
    }


def batch_shapes(
    mesh: Mesh, example: Mapping[str, Shaped[np.ndarray, "..."]], batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shapes and shardings of a global batch whose rows are like `example`, to compile a step with."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((batch_size, *feature.shape), feature.dtype, sharding=sharding)
        for name, feature in example.items()
    }


def common_axes(shape: Sequence[int], parameter: Sequence[int], spec: PartitionSpec) -> PartitionSpec:
    """Return how an array is sharded along the axes that it shares with a parameter.

    Args:
        shape: of the array, which lacks some axes of the parameter, or has several as one, as Adafactor's moments do.
        parameter: shape of the parameter.
        spec: how the parameter is sharded.
    """
    entries = [*spec, *[None] * (len(parameter) - len(spec))]
    first = 0
    while first < min(len(shape), len(parameter)) and shape[first] == parameter[first]:
        first += 1
    last = 0
    while last < min(len(shape), len(parameter)) - first and shape[-1 - last] == parameter[-1 - last]:
        last += 1
    missing = [None] * (len(shape) - first - last)
    return PartitionSpec(*entries[:first], *missing, *entries[len(parameter) - last :])


def state_shardings(
    mesh: Mesh, axes: PyTree[WeightAxes], state: PyTree, init_optimizer: Callable[[PyTree], PyTree]
) -> PyTree[NamedSharding]:
    """Return the sharding of every array of a train state.

    An array of the optimizer state that belongs to a parameter is sharded like it (ZeRO: Rajbhandari et al. 2020); a
    factored moment along the axes that it shares with the parameter. States that are carried from batch to batch are
    sharded by row. Everything else, such as counts, is small and replicated.

    Args:
        mesh: the devices.
        axes: logical axes of each weight of the model.
        state: shapes of a `TrainState`; its `params`, `frozen` and `masks` are nested dicts.
        init_optimizer: makes `state.opt_state` for parameters.
    """
    axes_by_name = flatten_names(axes)
    everywhere = replicated(mesh)

    def shard_weights(weights: PyTree) -> PyTree[NamedSharding]:
        shardings_by_name = {
            name: sharding_of(mesh, axes_by_name[name], weight.shape) for name, weight in flatten_names(weights).items()
        }
        return unflatten_names(shardings_by_name)

    def shard_like_parameter(
        arrays: PyTree, parameter: jax.ShapeDtypeStruct, sharding: NamedSharding
    ) -> PyTree[NamedSharding]:
        """Shard what an optimizer keeps for one parameter: one array, or several, or none if it is masked."""
        return jax.tree.map(
            lambda array: NamedSharding(mesh, common_axes(array.shape, parameter.shape, sharding.spec)), arrays
        )

    param_shardings = shard_weights(state.params)
    carry_sharding = NamedSharding(mesh, PartitionSpec(None, LOGICAL_AXIS_RULES["batch"]))
    opt_state_shardings = optax.tree_map_params(
        partial(jax.eval_shape, init_optimizer),
        shard_like_parameter,
        state.opt_state,
        state.params,
        param_shardings,
        transform_non_params=lambda _: everywhere,
        is_leaf=lambda node: not isinstance(node, dict),  # parameters are nested dicts: a leaf is all of one parameter
    )
    return dataclasses.replace(
        jax.tree.map(lambda _: everywhere, state),
        params=param_shardings,
        frozen=shard_weights(state.frozen),
        masks=shard_weights(state.masks),
        opt_state=opt_state_shardings,
        carry=jax.tree.map(lambda _: carry_sharding, state.carry),
    )
