"""Dense attention by cuDNN on NVIDIA GPUs, through `jax.nn.dot_product_attention`."""

from functools import partial

import jax
from jaxtyping import Array, Bool, Float

from t5x_lite.models.attention.context import AttentionInputs, attention_mask
from t5x_lite.models.attention.kinds import AttentionKind, Dense
from t5x_lite.models.attention.requirements import KernelRequirements
from t5x_lite.models.sharding import (
    GPU_PLATFORMS,
    active_mesh,
    axis_sizes,
    head_axis,
    num_shards,
    partition_spec,
)


def unsupported_reason(kind: AttentionKind, required: KernelRequirements, platform: str) -> str | None:
    """Return why cuDNN cannot compute an attention; None if it can."""
    if platform not in GPU_PLATFORMS:
        return f"it is for NVIDIA GPUs, not for {platform}"
    if not required.self_attention:
        return "it supports self-attention only"
    if num_shards("length") > 1:
        return "it does not support rows that devices share (mesh.context)"
    if required.bias:
        return "it does not support positions that add a bias to the scores"
    if required.dropout:
        return "it does not support attention dropout (model.attention_dropout=0 is without)"
    if required.prefix:
        return "it does not support a prefix that is attended to both ways"
    if not isinstance(kind, Dense):
        return "it computes dense attention only"
    if required.documents and num_shards("layers") > 1:
        return "it does not support rows of several documents in stages (mesh.pipeline)"
    if required.sinks:
        return "it does not support attention sinks"
    if required.softcap:
        return "it does not support a softcap on the scores"
    return _unsupported_shape(required)


def _unsupported_shape(required: KernelRequirements) -> str | None:
    """Return why cuDNN cannot compute arrays of a shape or type; None if it can."""
    if required.dtype not in {"bfloat16", "float16"}:
        return f"it supports bfloat16 and float16, not {required.dtype}"
    if required.head_dim % 8 > 0 or required.head_dim > 128:
        return f"head_dim {required.head_dim} is not a multiple of 8 up to 128"
    if required.length % 2 > 0:
        return f"length {required.length} is odd"
    return None


def attention(inputs: AttentionInputs, kind: AttentionKind) -> Float[Array, "b l h k"]:
    """Compute attention by cuDNN, every device its rows of the batch and its heads.

    The scores stay on the chip; a mask of documents, if there are several, does not.
    """
    context = inputs.context
    arrays = [inputs.query, inputs.key, inputs.value]
    # The kernel wants all three sharded alike: by heads only if the devices share the heads of keys too.
    axes: list[tuple[str | None, ...]] = [("batch", None, head_axis(inputs.key.shape[2]), None)] * 3
    if not (context.queries.single_segment and context.keys.single_segment):
        arrays.append(attention_mask(kind.allowed, context)[:, None])
        axes.append(("batch", None, None, None))
    compute = partial(_run_kernel, scale=inputs.settings.scale, causal=context.causal)
    if active_mesh() is None:
        return compute(*arrays)
    # The kernel's own partitioning does not know meshes that `jax.shard_map` has split in part.
    specs = tuple(partition_spec(axis_sizes(), names, array.shape) for names, array in zip(axes, arrays, strict=True))
    return jax.shard_map(compute, in_specs=specs, out_specs=specs[0], check_vma=False)(*arrays)


def _run_kernel(
    query: Float[Array, "b l h k"],
    key: Float[Array, "b m n k"],
    value: Float[Array, "b m n k"],
    mask: Bool[Array, "b 1 l m"] | None = None,
    *,
    scale: float | None,
    causal: bool,
) -> Float[Array, "b l h k"]:
    """Run cuDNN's attention on the arrays of one device."""
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, scale=scale, is_causal=causal, implementation="cudnn"
    )
