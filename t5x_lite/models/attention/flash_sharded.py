"""Flash attention over the devices of a mesh: every device computes its rows of the batch and its heads."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from t5x_lite.models.attention.context import AttentionInputs
from t5x_lite.models.attention.flash import FlashInputs, FlashSettings, flash_attention
from t5x_lite.models.attention.kinds import AttentionKind, Local
from t5x_lite.models.sharding import shards, spec


def flash(call: AttentionInputs, pattern: AttentionKind, *, interpret: bool = False) -> Float[Array, "b l h k"]:
    """Attention by the Pallas kernels of `flash.py`; see `kernels.attend`."""
    view, settings = call.view, call.settings
    mesh = jax.sharding.get_abstract_mesh()
    length, keys = call.query.shape[1], call.key.shape[1]
    scale = call.query.shape[3] ** -0.5 if settings.scale is None else settings.scale
    dropout = settings.dropout if call.dropout_key is not None else 0.0
    seed = jnp.zeros((), jnp.int32)
    if call.dropout_key is not None and dropout > 0:
        seed = jax.lax.bitcast_convert_type(jax.random.bits(call.dropout_key, (), jnp.uint32), jnp.int32)
    flash_settings = FlashSettings(
        scale=scale,
        causal=view.causal,
        window=pattern.window if isinstance(pattern, Local) else None,
        has_prefix=view.keys.prefix is not None,
        dropout=dropout,
        interpret=interpret,
    )
    bias = None
    if view.offset_bias is not None:
        bias = view.offset_bias(jnp.arange(1 - length, keys + 1))
    inputs = FlashInputs(
        query=call.query,
        key=call.key,
        value=call.value,
        query_segments=view.queries.segment_ids,
        key_segments=view.keys.segment_ids,
        prefix=None if view.keys.prefix is None else view.keys.prefix.astype(jnp.int32),
        bias=bias,
        scalars=jnp.stack([jnp.zeros((), jnp.int32), seed]),
    )
    if mesh.empty or mesh.size == 1:
        return flash_attention(inputs, flash_settings)

    def local(inputs: FlashInputs) -> Array:
        rows, bias = inputs.query.shape[1], inputs.bias
        first = jnp.zeros((), jnp.int32)
        if shards("length") > 1:
            first = first + jax.lax.axis_index("context") * rows
            if bias is not None:
                bias = jax.lax.dynamic_slice_in_dim(bias, length - rows - first, rows + keys, axis=1)
        # Every device drops weights of its own: its number goes into the seed.
        device = jnp.zeros((), jnp.int32)
        for axis in mesh.axis_names:
            device = device * mesh.shape[axis] + jax.lax.axis_index(axis)
        scalars = jnp.stack([first, inputs.scalars[1] + device])
        return flash_attention(replace(inputs, bias=bias, scalars=scalars), flash_settings)

    # Query and key heads are sharded alike, or a shard would hold queries without their keys.
    by_heads = "heads" if call.key.shape[2] % mesh.shape["tensor"] == 0 else None

    def of(array: Array | None, *names: str | None) -> Any:
        return None if array is None else spec(mesh.shape, names, array.shape)

    specs = FlashInputs(
        query=of(inputs.query, "batch", "length", by_heads, None),
        key=of(inputs.key, "batch", None, by_heads, None),
        value=of(inputs.value, "batch", None, by_heads, None),
        query_segments=of(inputs.query_segments, "batch", "length"),
        key_segments=of(inputs.key_segments, "batch", None),
        prefix=of(inputs.prefix, "batch", None),
        bias=of(inputs.bias, by_heads, None),
        scalars=of(inputs.scalars, None),
    )
    return jax.shard_map(local, in_specs=(specs,), out_specs=specs.query, check_vma=False)(inputs)
