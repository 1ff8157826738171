"""The axes of the device mesh and the one table from logical axes to them."""

import math
from collections.abc import Mapping

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

GPU_PLATFORMS = ("gpu", "cuda", "rocm")
"""What JAX calls a GPU: `gpu` as a backend, the others as platforms."""

AXES = ("data", "fsdp", "tensor", "expert", "context", "pipeline")

RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "expert"),
    "groups": ("data", "fsdp"),
    "length": ("context",),
    "residual_length": ("context", "tensor"),
    "layers": ("pipeline",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "experts": ("expert",),
    "router": (),
    "vocab": ("tensor", "pipeline"),
    "position": (),
    "types": (),
    "buckets": (),
    "classes": (),
    "embed_out": (),
    "rank": (),
    "bottleneck": (),
}
"""Which mesh axes shard a logical axis: the first of them that together divide its size.

Between the sublayers, where every channel is needed (norms, residual additions), the residual stream is cut along its
length over `tensor` too (sequence parallelism: Korthikanti et al. 2022, §4.2.2). Stages of layers share the vocabulary,
so that none waits while another computes the loss.
"""


def spec(sizes: Mapping[str, int], names: tuple[str | None, ...], shape: tuple[int, ...]) -> PartitionSpec:
    """How an array with these logical axes lies on a mesh of these `sizes`; None is an axis that stays whole."""
    parts: list[tuple[str, ...] | None] = []
    used: set[str] = set()
    for name, size in zip(names, shape, strict=True):
        fits = tuple(axis for axis in RULES[name] if axis not in used and sizes[axis] > 1) if name else ()
        while size % math.prod(sizes[axis] for axis in fits):
            fits = fits[:-1]
        used.update(fits)
        parts.append(fits or None)
    return PartitionSpec(*parts)


def constrain(x: Array, *names: str | None) -> Array:
    """`x`, laid out on the mesh of the context by its logical axes; without a mesh as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec(mesh.shape, names, x.shape))


def platform() -> str:
    """The platform that is compiled for: that of the context's mesh, which may be a pod that is not here."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return device.platform if device is not None else jax.default_backend()


def shards(name: str) -> int:
    """Into how many parts the mesh of the context cuts a logical axis."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in RULES[name])
