"""Sums over the tokens of a batch that each device first computes of its own tokens."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

from t5x_lite.models.sharding import (
    LOGICAL_AXIS_RULES,
    axis_sizes,
    mesh_axes,
    num_shards,
    partition_spec,
    scatter_sum,
    widen_on_cpu,
)

T = TypeVar("T")


def token_axes(rows: int, length: int) -> tuple[str, ...]:
    """Return the mesh axes that the tokens of a batch are sharded over; none where they do not divide them."""
    sizes = axis_sizes()
    axes: list[str] = []
    for name, size in (("batch", rows), ("length", length)):
        if size % num_shards(name) == 0:
            axes.extend(axis for axis in LOGICAL_AXIS_RULES[name] if sizes.get(axis, 1) > 1)
    return tuple(axes)


def split_tokens(arrays: T, axes: tuple[str, ...]) -> T:
    """Return arrays `[n, b, l, …]` as `[n, shards, b', l', …]`, sharded along `shards`; without axes, as they are."""
    if not axes:
        return arrays
    row_shards = num_shards("batch") if set(axes) & set(LOGICAL_AXIS_RULES["batch"]) else 1
    length_shards = num_shards("length") if set(axes) & set(LOGICAL_AXIS_RULES["length"]) else 1

    def split(x: Array) -> Array:
        n, rows, length, *sizes = x.shape
        blocks = x.reshape(n, row_shards, rows // row_shards, length_shards, length // length_shards, *sizes)
        by_shard = jnp.moveaxis(blocks, 3, 2).reshape(n, -1, rows // row_shards, length // length_shards, *sizes)
        unchanged = [PartitionSpec.UNCONSTRAINED] * (by_shard.ndim - 2)
        return jax.lax.with_sharding_constraint(by_shard, PartitionSpec(None, axes, *unchanged))

    return jax.tree.map(split, arrays)


def map_shards(function: Callable[..., T], axes: tuple[str, ...]) -> Callable[..., T]:
    """Return a function over the first axis of arrays, the shards of the batch; without axes, the function itself."""
    return jax.vmap(function, spmd_axis_name=axes) if axes else function


def sum_shards(x: Array, axes: tuple[str, ...], width: int = 0) -> Array:
    """Return the sum over the first axis, the shards of the batch; without axes, the array itself.

    The sum of a matrix is scattered as weights are, along the axis of size `width`.
    """
    if not axes:
        return x
    spec = PartitionSpec()
    if x.ndim == 3 and width in x.shape[1:]:
        names = [None] * x.shape[1:].index(width)
        spec = partition_spec(axis_sizes(), (*names, "embed"), x.shape[1 : len(names) + 2])
        if not set(mesh_axes(spec)) <= set(axes):
            spec = PartitionSpec()

    def sum_over_devices(shard: Array) -> Array:
        total = widen_on_cpu(shard[0])
        scattered = mesh_axes(spec)
        if scattered:
            total = scatter_sum(total, scattered, len(spec) - 1)
        return jax.lax.psum(total, tuple(axis for axis in axes if axis not in scattered)).astype(shard.dtype)

    add_up = jax.shard_map(
        sum_over_devices, in_specs=PartitionSpec(axes), out_specs=spec, axis_names=set(axes), check_vma=False
    )
    return add_up(x)
