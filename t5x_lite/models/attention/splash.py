"""Splash attention: JAX's Pallas kernel for TPUs, over the devices of a mesh."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from t5x_lite.models.attention.context import AttentionInputs
from t5x_lite.models.attention.kinds import AttentionKind, Dense, Local
from t5x_lite.models.attention.requirements import KernelRequirements
from t5x_lite.models.remat_policy import ATTENTION_OUTPUT
from t5x_lite.models.reorder import reorder
from t5x_lite.models.sharding import active_mesh, axis_sizes, gather_shards, head_axis, num_shards, partition_spec

LANES = 128
"""Values of a row of the core's memory. Splash attention works on blocks of a multiple of this many tokens."""
BLOCK_SIZES = (512, 256, 128)
"""Tokens of a block, the fastest first."""


def unsupported_reason(kind: AttentionKind, required: KernelRequirements, platform: str) -> str | None:
    """Return why splash attention cannot compute an attention; None if it can."""
    if platform != "tpu":
        return f"it is for TPUs, not for {platform}"
    length_shards = num_shards("length")
    if required.length % (LANES * length_shards) > 0:
        reason = f"length {required.length} is not a multiple of {LANES}"
        if length_shards > 1:
            reason += f" for each of mesh.context {length_shards}"
        return reason
    if kind.allows_empty_rows:
        return "it does not support queries without any key"
    if not required.self_attention:
        return "it supports self-attention only"
    if required.bias:
        return "it does not support positions that add a bias to the scores"
    if required.dropout:
        return "it does not support attention dropout (model.attention_dropout=0 is without)"
    if required.prefix:
        return "it does not support a prefix that is attended to both ways"
    if required.traced_positions:
        return "it needs positions that are known when the program is compiled"
    return None


def attention(inputs: AttentionInputs, kind: AttentionKind) -> Float[Array, "b l h k"]:
    """Compute attention by splash attention, which skips the blocks that the mask leaves empty.

    Each device computes its own rows, heads and part of the length, and gathers the keys and values of the whole row.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    mesh = active_mesh()
    length, heads = inputs.query.shape[1:3]
    head_name = head_axis(inputs.key.shape[2])
    index = np.asarray(inputs.context.queries.index)
    size = next(block for block in BLOCK_SIZES if length // num_shards("length") % block == 0)
    # Narrow heads fill the lanes with tokens instead, as the compiler lays out the projections.
    layout = splash.QKVLayout.SEQ_MINOR if inputs.query.shape[3] < LANES else splash.QKVLayout.HEAD_DIM_MINOR
    kernel = splash.make_splash_mha(
        _build_mask(kind, index, heads, causal=inputs.context.causal),
        block_sizes=splash.BlockSizes(
            block_q=size,
            block_kv=size,
            block_kv_compute=size,
            block_q_dkv=size,
            block_kv_dkv=size,
            block_kv_dkv_compute=size,
            # A kernel of their own computes the gradients of queries. Together with those of keys and values they are
            # computed once for each block of keys, and their sum takes longer than the scores do again.
            use_fused_bwd_kernel=False,
            block_q_dq=size,
            block_kv_dq=size,
            q_layout=layout,
            k_layout=layout,
            v_layout=layout,
        ),
        head_shards=1 if head_name is None else num_shards(head_name),
        q_seq_shards=num_shards("length"),
        residual_checkpoint_name=ATTENTION_OUTPUT,
        attn_logits_soft_cap=inputs.settings.softcap,
        interpret=inputs.settings.interpret,
    )
    key_order = None
    if not np.array_equal(index, np.arange(length)):
        key_order = np.argsort(index)
    segments = inputs.context.queries.segment_ids
    arrays = [inputs.query * inputs.scale, inputs.key, inputs.value, segments, segments]
    if inputs.context.sinks is not None:
        arrays.append(inputs.context.sinks)
    compute = partial(_run_kernel, key_order=key_order)
    if mesh is None:
        return compute(kernel, *arrays)
    key_axes = ("batch", "length", head_name, None)
    axes = [("batch", "length", head_name, None), key_axes, key_axes, ("batch", "length"), ("batch", None)]
    if inputs.context.sinks is not None:
        axes.append((head_name,))
    specs = tuple(partition_spec(axis_sizes(), names, array.shape) for names, array in zip(axes, arrays, strict=True))

    def compute_shard(kernel: Any, query: Array, key: Array, value: Array, *others: Array) -> Float[Array, "b l h k"]:
        return compute(kernel, query, gather_shards(key, specs[1], 1), gather_shards(value, specs[2], 1), *others)

    # The kernel looks at sizes only, and cannot read those of a mesh that is split already.
    unsplit_mesh = AbstractMesh(mesh.axis_sizes, mesh.axis_names)
    kernel_spec = kernel.manual_sharding_spec(NamedSharding(unsplit_mesh, PartitionSpec(specs[0][2], specs[0][1])))
    sharded = jax.shard_map(compute_shard, in_specs=(kernel_spec, *specs), out_specs=specs[0], check_vma=False)
    return sharded(kernel, *arrays)


def _run_kernel(
    kernel: Any,
    query: Float[Array, "b l h k"],
    key: Float[Array, "b m n k"],
    value: Float[Array, "b m n k"],
    query_segments: Int[Array, "b l"],
    key_segments: Int[Array, "b m"],
    sinks: Float[Array, "h"] | None = None,
    *,
    key_order: np.ndarray | None,
) -> Float[Array, "b l h k"]:
    """Run a splash kernel on the arrays of one device; `key_order` sorts keys that are out of order."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

    if key_order is not None:
        key = reorder(key, key_order)
        value = reorder(value, key_order)
        key_segments = reorder(key_segments, key_order)
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))

    def run_row(query: Array, key: Array, value: Array, segment_ids: splash.SegmentIds) -> Float[Array, "h l k"]:
        return kernel(query, key, value, segment_ids=segment_ids, sinks=sinks)

    out = jax.vmap(run_row)(query, key, value, splash.SegmentIds(query_segments, key_segments))
    return jnp.swapaxes(out, 1, 2)


def _build_mask(kind: AttentionKind, index: Int[np.ndarray, "l"], heads: int, *, causal: bool) -> Any:
    """Return the mask of queries at `index` and keys in order, as splash attention takes it."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length = len(index)
    shape = (length, length)
    in_order = np.array_equal(index, np.arange(length))

    @dataclass(frozen=True)
    class LazyMask(masks.Mask):
        """A mask computed block by block: that of a long row would not fit in memory."""

        kind: AttentionKind

        @property
        def shape(self) -> tuple[int, int]:
            return shape

        def __getitem__(self, block: tuple[slice, slice]) -> np.ndarray:
            query = index[block[0]][:, None]
            key = np.arange(length)[block[1]]
            mask = np.array(np.broadcast_to(kind.allowed(query, key), np.broadcast_shapes(query.shape, key.shape)))
            if causal:
                mask = mask & (query >= key)
            return mask

    mask: masks.Mask = LazyMask(kind)
    if in_order and isinstance(kind, Dense):
        mask = masks.CausalMask(shape) if causal else masks.FullMask(shape)
    elif in_order and isinstance(kind, Local):
        reach = kind.window - 1
        mask = masks.LocalMask(shape, (reach, 0 if causal else reach), 0)
    return masks.MultiHeadMask([mask] * heads)
