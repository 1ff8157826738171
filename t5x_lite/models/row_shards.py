"""Sums over the rows of a batch that each device first computes of its own rows."""

from collections.abc import Callable
from typing import TypeVar

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from t5x_lite.models.sharding import LOGICAL_AXIS_RULES, axis_sizes, num_shards, widen_on_cpu

T = TypeVar("T")


def row_axes(rows: int) -> tuple[str, ...]:
    """Return the mesh axes that rows of a batch are sharded over; none if they do not divide the rows."""
    if num_shards("batch") == 1 or rows % num_shards("batch"):
        return ()
    sizes = axis_sizes()
    return tuple(axis for axis in LOGICAL_AXIS_RULES["batch"] if sizes[axis] > 1)


def split_rows(arrays: T, axes: tuple[str, ...]) -> T:
    """Return arrays `[n, b, …]` as `[n, shards, b / shards, …]`, sharded along `shards`; without axes, as they are."""
    if not axes:
        return arrays

    def split(x: Array) -> Array:
        n, _, *sizes = x.shape
        by_shard = x.reshape(n, num_shards("batch"), -1, *sizes)
        unchanged = [PartitionSpec.UNCONSTRAINED] * (by_shard.ndim - 2)
        return jax.lax.with_sharding_constraint(by_shard, PartitionSpec(None, axes, *unchanged))

    return jax.tree.map(split, arrays)


def map_shards(function: Callable[..., T], axes: tuple[str, ...]) -> Callable[..., T]:
    """Return a function over the first axis of arrays, the shards of the batch; without axes, the function itself."""
    return jax.vmap(function, spmd_axis_name=axes) if axes else function


def sum_shards(x: Array, axes: tuple[str, ...], width: int = 0) -> Array:
    """Return the sum over the first axis, the shards of the batch; without axes, the array itself.

    The sum of a matrix is scattered over `fsdp`, along the axis of size `width`.
    """
    if not axes:
        return x
    scattered = None
    if x.ndim == 3 and "fsdp" in axes and width in x.shape[1:] and width % axis_sizes()["fsdp"] == 0:
        scattered = x.shape[1:].index(width)

    def sum_over_devices(shard: Array) -> Array:
        total = widen_on_cpu(shard[0])
        others = axes
        if scattered is not None:
            total = jax.lax.psum_scatter(total, "fsdp", scatter_dimension=scattered, tiled=True)
            others = tuple(axis for axis in axes if axis != "fsdp")
        return jax.lax.psum(total, others).astype(shard.dtype)

    spec = PartitionSpec() if scattered is None else PartitionSpec(*[None] * scattered, "fsdp")
    add_up = jax.shard_map(
        sum_over_devices, in_specs=PartitionSpec(axes), out_specs=spec, axis_names=set(axes), check_vma=False
    )
    return add_up(x)
