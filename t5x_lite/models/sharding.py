"""The axes of the device mesh and the one table from logical axes to them."""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array

from t5x_lite.models.trace_settings import set_context_var

T = TypeVar("T")
U = TypeVar("U")

GPU_PLATFORMS = ("gpu", "cuda", "rocm")
"""JAX's names for GPUs: `gpu` as a backend, the others as platforms."""

MESH_AXES = ("data", "fsdp", "tensor", "expert", "context", "pipeline")

LOGICAL_AXIS_RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "expert"),
    "groups": ("data", "fsdp"),
    "length": ("context",),
    "residual_length": ("context", "tensor"),
    "layers": ("pipeline",),
    "embed": ("fsdp", "context"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "cells": ("fsdp", "context"),
    "gates": (),
    "state": (),
    "taps": (),
    "characters": (),
    "experts": ("expert",),
    "router": (),
    "vocab": ("tensor", "pipeline"),
    "position": (),
    "types": (),
    "buckets": (),
    "classes": (),
    "embed_out": (),
    "latent": (),
    "rank": (),
    "bottleneck": (),
}
"""The mesh axes that shard each logical axis: the first of them that together divide its size.

Between the sublayers, where every channel is needed (norms, residual additions), the residual stream is sharded along
its length over `tensor` too (sequence parallelism: Korthikanti et al. 2022, §4.2.2). Pipeline stages share the
vocabulary, so that none waits while another computes the loss.
"""


def partition_spec(sizes: Mapping[str, int], names: tuple[str | None, ...], shape: tuple[int, ...]) -> PartitionSpec:
    """Return how an array with these logical axes is sharded over a mesh of these `sizes`; None: not sharded."""
    parts: list[tuple[str, ...] | None] = []
    used: set[str] = set()
    for name, size in zip(names, shape, strict=True):
        mesh_axes: list[str] = []
        if name is not None:
            mesh_axes = [axis for axis in LOGICAL_AXIS_RULES[name] if axis not in used and sizes[axis] > 1]
        while size % math.prod(sizes[axis] for axis in mesh_axes):
            mesh_axes.pop()
        used.update(mesh_axes)
        parts.append(tuple(mesh_axes) or None)
    return PartitionSpec(*parts)


def axis_sizes() -> dict[str, int]:
    """Return the sizes of the mesh axes in context that arrays can be sharded over; empty without a mesh.

    An axis over which `jax.shard_map` has split the computation already counts as 1.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return {axis: 1 if axis in mesh.manual_axes else size for axis, size in mesh.shape.items()}


def active_mesh() -> AbstractMesh | None:
    """Return the mesh in context if it has several devices."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def mesh_axes(parts: Iterable[str | tuple[str, ...] | None]) -> tuple[str, ...]:
    """Return the mesh axes that a partition spec, or some of its parts, split an array over."""
    axes: list[str] = []
    for part in parts:
        axes.extend((part,) if isinstance(part, str) else part or ())
    return tuple(axes)


def head_axis(kv_heads: int) -> str | None:
    """Return the logical axis of attention's heads, None where `tensor` does not divide the key heads.

    Query and key heads are sharded alike, or a shard would hold queries without their keys.
    """
    mesh = active_mesh()
    return "heads" if mesh is not None and kv_heads % axis_sizes()["tensor"] == 0 else None


def constrain(x: Array, *names: str | None) -> Array:
    """Return `x` with its logical axes sharded over the mesh in context; without a mesh, `x` as it is."""
    if active_mesh() is None:
        return x
    sizes = axis_sizes()
    if _in_shard.get():
        # These axes shard what `vmap` maps over: they cannot shard another axis of the array.
        sizes.update(dict.fromkeys((*LOGICAL_AXIS_RULES["batch"], *LOGICAL_AXIS_RULES["length"]), 1))
    return jax.lax.with_sharding_constraint(x, partition_spec(sizes, names, x.shape))


_in_shard: ContextVar[bool] = ContextVar("in_shard", default=False)


def in_shard(*, enabled: bool) -> AbstractContextManager[None]:
    """Trace what is computed inside for one shard of the tokens of a batch; see `token_shards.map_shards`."""
    return set_context_var(_in_shard, enabled)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather(x: Array, names: tuple[str | None, ...], gathered: str) -> Array:
    """Return `x`, whose logical axes are `names`, with the axis `gathered` whole on every device.

    The gradient is sharded as `x` was: a reduce-scatter is enough. After `constrain` it would be whole too, by an
    all-reduce.
    """
    return constrain(x, *(None if name == gathered else name for name in names))


def _gather_forward(x: Array, names: tuple[str | None, ...], gathered: str) -> tuple[Array, None]:
    return gather(x, names, gathered), None


def _scatter_gradient(names: tuple[str | None, ...], gathered: str, residuals: None, gradient: Array) -> tuple[Array]:
    return (constrain(gradient, *names),)


gather.defvjp(_gather_forward, _scatter_gradient)


def map_batch_shards(function: Callable[..., T], rows: Any, shared: Any) -> T:
    """Compute a function on each device's rows of the batch; the compiler partitions the other axes.

    Args:
        function: a function of `rows` and `shared` that returns a tree of arrays `[b, …]`. It closes over no traced
            array.
        rows: a tree of arrays `[b, …]`.
        shared: a tree of arrays that all rows share.
    """
    if num_shards("batch") == 1:
        return function(rows, shared)
    sizes = axis_sizes()
    batch = partition_spec(sizes, ("batch",), jax.tree.leaves(rows)[0].shape[:1])
    # Pipeline stages are mapped over `pipeline`, outside of this function.
    axes = {axis for axis in (*LOGICAL_AXIS_RULES["batch"], "pipeline") if sizes[axis] > 1}
    sharded = jax.shard_map(
        function, in_specs=(batch, PartitionSpec()), out_specs=batch, axis_names=axes, check_vma=False
    )
    return sharded(rows, shared)


def map_rows(function: Callable[[U], T], rows: U) -> T:
    """Compute a function on each device's rows of the batch; devices that share a row compute the same.

    Args:
        function: a function of `rows` that returns a tree of arrays `[b, …]`. It closes over no traced array.
        rows: a tree of arrays `[b, …]`.
    """
    if active_mesh() is None:
        return function(rows)
    sizes = axis_sizes()
    batch = partition_spec(sizes, ("batch",), jax.tree.leaves(rows)[0].shape[:1])
    # With the check, devices that share a row sum no equal gradients. It does not know that pipeline stages are mapped
    # over `pipeline`, outside of this function.
    return jax.shard_map(function, in_specs=(batch,), out_specs=batch, check_vma=sizes["pipeline"] == 1)(rows)


def gather_shards(shard: Array, parts: PartitionSpec, axis: int) -> Array:
    """Return an array of which `jax.shard_map` has given each device a shard, with one axis whole.

    The sum of its gradients is scattered.

    Args:
        shard: the shard of this device.
        parts: how the array is sharded.
        axis: the axis to gather.
    """
    names = mesh_axes(parts[axis : axis + 1])
    if not names:
        return shard
    # Side by side first: a TPU scatters a sum along the slowest axis in memory alone, and sums others in full.
    shards = jnp.moveaxis(jax.lax.all_gather(shard, names), 0, axis)
    return shards.reshape(*shard.shape[:axis], -1, *shard.shape[axis + 1 :])


def scatter_sum(x: Array, axes: tuple[str, ...], axis: int) -> Array:
    """Return this device's shard, along an axis, of the sum over mesh axes. Must be called in `jax.shard_map`."""
    shards = math.prod(jax.lax.axis_size(name) for name in axes)
    by_shard = x.reshape(*x.shape[:axis], shards, -1, *x.shape[axis + 1 :])
    return jax.lax.psum_scatter(jnp.moveaxis(by_shard, axis, 0), axes)


def sum_over(arrays: T, axes: str | tuple[str, ...]) -> T:
    """Return the sums over mesh axes of arrays that `jax.shard_map` has split, on all devices."""
    if not axes:
        return arrays
    totals = jax.lax.psum(widen_on_cpu(arrays), axes)
    return jax.tree.map(lambda total, x: total.astype(x.dtype), totals, arrays)


def widen_on_cpu(arrays: T) -> T:
    """Return arrays in the types in which devices can sum them: XLA's compiler for CPUs aborts on bfloat16."""
    if target_platform() != "cpu":
        return arrays
    return jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, arrays)


def target_platform() -> str:
    """Return the platform compiled for: that of the mesh in context, which may be a pod that is not attached."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return device.platform if device is not None else jax.default_backend()


def num_shards(name: str) -> int:
    """Return how many shards the mesh in context divides a logical axis into."""
    sizes = axis_sizes()
    return math.prod(sizes.get(axis, 1) for axis in LOGICAL_AXIS_RULES[name])
