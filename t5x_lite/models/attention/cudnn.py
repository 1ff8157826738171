"""Dense attention by cuDNN on NVIDIA GPUs, through `jax.nn.dot_product_attention`."""

import jax
from jaxtyping import Array, Float

from t5x_lite.models.attention.context import AttentionInputs, KernelRequirements, attention_mask
from t5x_lite.models.attention.kinds import AttentionKind, Dense
from t5x_lite.models.sharding import GPU_PLATFORMS, constrain, head_axis, num_shards


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
    if required.dtype not in {"bfloat16", "float16"}:
        return f"it supports bfloat16 and float16, not {required.dtype}"
    if required.head_dim % 8 > 0 or required.head_dim > 128:
        return f"head_dim {required.head_dim} is not a multiple of 8 up to 128"
    if required.length % 2 > 0:
        return f"length {required.length} is odd"
    if not isinstance(kind, Dense):
        return "it computes dense attention only"
    if required.sinks:
        return "it does not support attention sinks"
    if required.softcap:
        return "it does not support a softcap on the scores"
    return None


def attention(inputs: AttentionInputs, kind: AttentionKind) -> Float[Array, "b l h k"]:
    """Compute attention by cuDNN. The scores stay on the chip; a mask of documents, if there are several, does not."""
    context = inputs.context
    mask = None
    if not (context.queries.single_segment and context.keys.single_segment):
        mask = attention_mask(kind.allowed, context)[:, None]
    # The kernel wants all three sharded alike: by heads only if the devices share the heads of keys too.
    heads = head_axis(inputs.key.shape[2])
    query, key, value = (constrain(x, "batch", None, heads, None) for x in (inputs.query, inputs.key, inputs.value))
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=mask,
        scale=inputs.settings.scale,
        is_causal=context.causal,
        implementation="cudnn",
    )
