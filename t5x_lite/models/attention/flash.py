"""Flash attention in Pallas: what XLA, cuDNN and splash attention do not fuse (Dao et al. 2022; Dao 2023).

It supports a bias that depends on the offset alone, and its gradient; masks by documents of queries and keys, by
causality, by a prefix, and by a window; and dropout of attention weights. No array of queries times keys reaches the
memory of the device. The kernels are in `flash_gpu.py` and `flash_tpu.py`, the arithmetic of a tile in
`flash_tiles.py`.
"""

from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from t5x_lite.integers import ceil_div
from t5x_lite.models.attention import flash_gpu, flash_tpu
from t5x_lite.models.attention.context import AttentionInputs
from t5x_lite.models.attention.flash_tiles import LOG2_E, FlashInputs, FlashSettings, diagonal_tiles
from t5x_lite.models.attention.kinds import AttentionKind, Dense, Local
from t5x_lite.models.attention.requirements import KernelRequirements
from t5x_lite.models.remat import name_attention
from t5x_lite.models.sharding import (
    GPU_PLATFORMS,
    active_mesh,
    axis_sizes,
    gather_shards,
    head_axis,
    mesh_axes,
    partition_spec,
    target_platform,
)

TPU_BLOCK = 256
"""Queries and keys of a tile on a TPU; half of it for short rows."""


def unsupported_reason(kind: AttentionKind, required: KernelRequirements, platform: str) -> str | None:
    """Return why these kernels cannot compute an attention; None if they can."""
    if platform not in GPU_PLATFORMS and platform != "tpu":
        return f"it is for TPUs and NVIDIA GPUs, not for {platform}"
    if platform != "tpu" and required.dtype not in {"bfloat16", "float16"}:
        return f"it supports bfloat16 and float16, not {required.dtype}"
    if required.head_dim > 128:
        return f"head_dim {required.head_dim} is over 128"
    if not required.in_order:
        return "queries and keys are not in order"
    if not isinstance(kind, Dense | Local):
        return "it computes dense and local attention only"
    if required.sinks:
        return "it does not support attention sinks"
    if required.softcap:
        return "it does not support a softcap on the scores"
    return None


def attention(inputs: AttentionInputs, kind: AttentionKind) -> Float[Array, "b l h k"]:
    """Compute attention by flash attention; every device computes its rows of the batch, its heads and its queries."""
    context = inputs.context
    length = inputs.query.shape[1]
    keys = inputs.key.shape[1]
    dropout = 0.0
    seed = jnp.zeros((), jnp.int32)
    if inputs.dropout_key is not None and inputs.has_dropout:
        dropout = inputs.settings.dropout
        seed = jax.lax.bitcast_convert_type(jax.random.bits(inputs.dropout_key, (), jnp.uint32), jnp.int32)
    window = None
    if isinstance(kind, Local):
        window = kind.window
    prefix = context.keys.prefix
    if prefix is not None:
        prefix = prefix.astype(jnp.int32)
    bias = None
    if context.offset_bias is not None:
        bias = context.offset_bias(jnp.arange(1 - length, keys + 1))
    settings = FlashSettings(
        scale=inputs.scale,
        causal=context.causal,
        window=window,
        has_prefix=prefix is not None,
        dropout=dropout,
        interpret=inputs.settings.interpret,
    )
    if (inputs.settings.platform or target_platform()) == "tpu":
        block = TPU_BLOCK if min(length, keys) > TPU_BLOCK // 2 else TPU_BLOCK // 2
        settings = replace(settings, on_tpu=True, block_q=block, block_k=block)
    arrays = FlashInputs(
        query=inputs.query,
        key=inputs.key,
        value=inputs.value,
        query_segments=context.queries.segment_ids,
        key_segments=context.keys.segment_ids,
        prefix=prefix,
        bias=bias,
        scalars=_scalars(seed, inputs.query.shape[2]),
    )
    if active_mesh() is None:
        return flash_attention(arrays, settings)
    specs = _partition_specs(arrays)
    compute = partial(_compute_shard, settings=settings, length=length, specs=specs)
    return jax.shard_map(compute, in_specs=(specs,), out_specs=specs.query, check_vma=False)(arrays)


def _partition_specs(arrays: FlashInputs) -> Any:
    """Return how the inputs are sharded, as a tree of their shape."""
    heads = head_axis(arrays.key.shape[2])

    def partition(array: Array | None, *axes: str | None) -> PartitionSpec | None:
        if array is None:
            return None
        return partition_spec(axis_sizes(), axes, array.shape)

    specs: dict[str, Any] = {
        "query": partition(arrays.query, "batch", "length", heads, None),
        "key": partition(arrays.key, "batch", "length", heads, None),
        "value": partition(arrays.value, "batch", "length", heads, None),
        "query_segments": partition(arrays.query_segments, "batch", "length"),
        "key_segments": partition(arrays.key_segments, "batch", None),
        "prefix": partition(arrays.prefix, "batch", None),
        "bias": partition(arrays.bias, heads, None),
        "scalars": partition(arrays.scalars, None),
    }
    return FlashInputs(**specs)


def _compute_shard(arrays: FlashInputs, settings: FlashSettings, length: int, specs: Any) -> Float[Array, "b l h k"]:
    """Compute the shard of one device.

    Args:
        arrays: the shard.
        settings: of the kernels.
        length: number of queries of a whole row.
        specs: how the inputs are sharded.
    """
    queries = arrays.query.shape[1]
    key = gather_shards(arrays.key, specs.key, 1)
    keys = key.shape[1]
    bias = arrays.bias
    first_row, first_query, first_head = (_first_index(arrays.query, specs.query, axis) for axis in range(3))
    if queries < length and bias is not None:
        bias = jax.lax.dynamic_slice_in_dim(bias, length - queries - first_query, queries + keys, axis=1)
    heads = arrays.scalars[3]
    scalars = jnp.stack([first_query, arrays.scalars[1], first_row * heads + first_head, heads])
    value = gather_shards(arrays.value, specs.value, 1)
    return flash_attention(replace(arrays, key=key, value=value, bias=bias, scalars=scalars), settings)


def _first_index(shard: Array, spec: PartitionSpec, axis: int) -> Int[Array, ""]:
    """Return the index of the first entry of a shard along an axis of the whole array."""
    axes = mesh_axes([spec[axis]])
    if not axes:
        return jnp.zeros((), jnp.int32)
    return jax.lax.axis_index(axes) * shard.shape[axis]


def _scalars(seed: Int[Array, ""], heads: int) -> Int[Array, "4"]:
    """Return the scalars of a device that has the whole batch; see `FlashInputs`."""
    zero = jnp.zeros((), jnp.int32)
    return jnp.stack([zero, seed, zero, jnp.int32(heads)])


def flash_attention(inputs: FlashInputs, settings: FlashSettings) -> Float[Array, "b l h k"]:
    """Compute attention on one device; a query without any key gets 0.

    Lengths are padded here to whole tiles, and heads are packed as the kernels read them.
    """
    length, heads, width = inputs.query.shape[1:]
    keys = inputs.key.shape[1]
    padded_length = ceil_div(length, settings.block_q) * settings.block_q
    padded_keys = ceil_div(keys, settings.block_k) * settings.block_k
    if settings.on_tpu:
        heads_per_block = flash_tpu.heads_per_block(heads, inputs.key.shape[2], width)
        settings = replace(settings, heads_per_block=heads_per_block)
    kernels = _kernels(settings)

    def pad(x: Array, size: int) -> Array:
        padding = [(0, 0)] * x.ndim
        padding[1] = (0, size - x.shape[1])
        return jnp.pad(x, padding)

    prefix = inputs.prefix
    if prefix is not None:
        prefix = pad(prefix, padded_keys)
    bias = inputs.bias
    bias_tiles = None
    if bias is not None:
        left = padded_length - length
        right = padded_length + padded_keys - left - bias.shape[1]
        bias = LOG2_E * jnp.pad(bias, [(0, 0), (left, right)])
        # The kernels return the gradient of the bias itself.
        bias_tiles = diagonal_tiles(jax.lax.stop_gradient(bias), settings.block_q)
    padded = FlashInputs(
        query=pad(kernels.pack_heads(inputs.query, settings), padded_length),
        key=pad(kernels.pack_heads(inputs.key, settings), padded_keys),
        value=pad(kernels.pack_heads(inputs.value, settings), padded_keys),
        query_segments=pad(inputs.query_segments, padded_length),
        key_segments=pad(inputs.key_segments, padded_keys),
        prefix=prefix,
        bias=bias,
        scalars=inputs.scalars,
        bias_tiles=bias_tiles,
    )
    out = _attention(padded, settings)[:, :length]
    return kernels.unpack_heads(out, heads, width)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _attention(inputs: FlashInputs, settings: FlashSettings) -> Float[Array, "b l ..."]:
    out, _ = _kernels(settings).forward(inputs, settings)
    return out


def _kernels(settings: FlashSettings) -> ModuleType:
    return flash_tpu if settings.on_tpu else flash_gpu


Residuals = tuple[FlashInputs, Float[Array, "b l ..."], Float[Array, "b ... l"]]


def _attention_forward(inputs: FlashInputs, settings: FlashSettings) -> tuple[Float[Array, "b l ..."], Residuals]:
    out, log_sum = _kernels(settings).forward(inputs, settings)
    out = name_attention(out)
    return out, (inputs, out, name_attention(log_sum))


def _attention_backward(
    settings: FlashSettings, residuals: Residuals, out_gradient: Float[Array, "b l ..."]
) -> tuple[FlashInputs]:
    inputs, out, log_sum = residuals
    computed = _kernels(settings).backward(inputs, settings, out, out_gradient, log_sum)
    gradients: dict[str, Any] = {
        "query": computed.query,
        "key": computed.key,
        "value": computed.value,
        "query_segments": _zero_gradient(inputs.query_segments),
        "key_segments": _zero_gradient(inputs.key_segments),
        "prefix": _zero_gradient(inputs.prefix),
        "bias": None,
        "scalars": _zero_gradient(inputs.scalars),
        "bias_tiles": None,
    }
    if computed.bias is not None:
        # Scores are log2(e) times those of the definition, and so is the bias.
        gradients["bias"] = computed.bias / LOG2_E
    return (FlashInputs(**gradients),)


def _zero_gradient(x: Array | None) -> np.ndarray | None:
    """Return the gradient of an integer array, as JAX has it."""
    if x is None:
        return None
    return np.zeros(x.shape, jax.dtypes.float0)


_attention.defvjp(_attention_forward, _attention_backward)
