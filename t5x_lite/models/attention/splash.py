"""Splash attention: the Pallas kernel for TPUs, over the devices of a mesh."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from t5x_lite.models.attention.context import AttentionInputs
from t5x_lite.models.attention.kinds import AttentionKind, Dense, Local
from t5x_lite.models.sharding import shards, spec

LANES = 128
"""Splash attention works on blocks of a multiple of this many tokens (the kernel's source)."""
SPLASH_BLOCKS = (512, 256, 128)


def splash(call: AttentionInputs, pattern: AttentionKind, *, interpret: bool = False) -> Float[Array, "b l h k"]:
    """The Pallas kernel for TPUs, forward and backward: blocks that the mask leaves empty are skipped.

    Each device computes its own rows, heads and part of the length, and gathers the keys and values of the whole row.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel

    mesh, length, heads = jax.sharding.get_abstract_mesh(), call.query.shape[1], call.query.shape[2]
    alone = mesh.empty or mesh.size == 1
    # Query and key heads are sharded alike, or a shard would hold queries without their keys.
    by_heads = "heads" if not alone and call.key.shape[2] % mesh.shape["tensor"] == 0 else None
    size = next(block for block in SPLASH_BLOCKS if length // shards("length") % block == 0)
    tiles = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
    sizes = kernel.BlockSizes(**dict.fromkeys(tiles, size), use_fused_bwd_kernel=True)  # type: ignore[arg-type]
    places = np.asarray(call.view.queries.index)
    run = kernel.make_splash_mha(
        _splash_mask(pattern, places, heads, causal=call.view.causal),
        block_sizes=sizes,
        head_shards=1 if by_heads is None else mesh.shape["tensor"],
        q_seq_shards=shards("length"),
        interpret=interpret,
    )
    in_order = None if np.array_equal(places, np.arange(length)) else np.argsort(places)

    def own(run: Any, query: Array, key: Array, value: Array, segments: Array, of_keys: Array) -> Array:
        if in_order is not None:
            key, value, of_keys = (x[:, in_order] for x in (key, value, of_keys))
        heads_first = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
        out = jax.vmap(run)(*heads_first, segment_ids=kernel.SegmentIds(segments, of_keys))
        return jnp.swapaxes(out, 1, 2)

    segments = call.view.queries.segment_ids
    sides = (call.scaled, call.key, call.value, segments, segments)
    if alone:
        return own(run, *sides)
    kv = ("batch", None, by_heads, None)
    axes = [("batch", "length", by_heads, None), kv, kv, ("batch", "length"), ("batch", None)]
    specs = tuple(spec(mesh.shape, names, x.shape) for names, x in zip(axes, sides, strict=True))
    of_run = run.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(specs[0][2], specs[0][1])))
    local = jax.shard_map(own, in_specs=(of_run, *specs), out_specs=specs[0], check_vma=False)
    return local(run, *sides)


def _splash_mask(pattern: AttentionKind, places: np.ndarray, heads: int, *, causal: bool) -> Any:
    """The mask of queries at `places` and keys in order, as the kernel takes it."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length = len(places)
    shape, natural = (length, length), np.array_equal(places, np.arange(length))

    @dataclass(frozen=True)
    class Lazy(masks.Mask):
        """Made in blocks: a long row's square would not fit."""

        pattern: AttentionKind

        @property
        def shape(self) -> tuple[int, int]:
            return shape

        def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
            query, key = places[index[0]][:, None], np.arange(length)[index[1]]
            seen = np.broadcast_to(pattern.allowed(query, key), np.broadcast_shapes(query.shape, key.shape))
            return seen & (query >= key) if causal else np.array(seen)

    one: masks.Mask = Lazy(pattern)
    if natural and isinstance(pattern, Dense):
        one = masks.CausalMask(shape) if causal else masks.FullMask(shape)
    elif natural and isinstance(pattern, Local):
        one = masks.LocalMask(shape, (pattern.window - 1, 0 if causal else pattern.window - 1), 0)
    return masks.MultiHeadMask([one] * heads)
