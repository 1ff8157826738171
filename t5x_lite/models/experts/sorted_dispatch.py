"""Dropless dispatch by sorted rows: each device multiplies its own tokens, sorted by expert, with all experts.

Letters are those of `layers.py` and `dispatch.py`; s sorted choices with their padding.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray

from t5x_lite.models.experts.dispatch import gather_rows, sort_by_expert, weighted_sum
from t5x_lite.models.feedforward.layer import FeedForward
from t5x_lite.models.layers import GroupedProduct, SortedRows, Weight
from t5x_lite.models.sharding import active_mesh, axis_sizes, partition_spec

TILE_ROWS = 128
"""Rows that megablox multiplies at a time."""


def _megablox(x: Float[Array, "n d"], matrices: Float[Array, "e d f"], sizes: Int[Array, "e"]) -> Float[Array, "n f"]:
    from jax.experimental.pallas.ops.tpu.megablox import ops

    return ops.gmm(x, matrices, sizes, x.dtype)


GROUPED_PRODUCTS: dict[str, GroupedProduct] = {"ragged": jax.lax.ragged_dot, "megablox": _megablox}


def dispatch_sorted(
    experts: FeedForward,
    count: int,
    kernel: str,
    x: Float[Array, "b l d"],
    chosen: Int[Array, "b l k"],
    weights: Float[Array, "b l k"],
    key: PRNGKeyArray | None,
) -> Float[Array, "b l d"]:
    """Return the weighted outputs of the experts that each token has chosen.

    On a mesh each device gathers the weights of all experts here, so that neither they nor their gradients are ever
    whole outside.

    Args:
        experts: the experts, side by side.
        count: how many there are.
        kernel: key in `GROUPED_PRODUCTS`.
        x: tokens.
        chosen: the experts of each token; `count` is none.
        weights: their weights.
        key: turns on dropout.
    """
    product = GROUPED_PRODUCTS[kernel]
    if active_mesh() is None:
        return _run_rows(experts, count, product, x, chosen, weights, key)
    graph, params = nnx.split(experts)
    arrays, structure = jax.tree.flatten(params)
    matrices = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, Weight))
    specs = [partition_spec(axis_sizes(), matrix.axes.names, matrix.shape) for matrix in matrices]

    def gather_and_run(
        shards: Sequence[Array], x: Array, chosen: Array, weights: Array, key: PRNGKeyArray | None
    ) -> Float[Array, "b l d"]:
        gathered = [_all_gather(shard.astype(x.dtype), spec) for shard, spec in zip(shards, specs, strict=True)]
        module = nnx.merge(graph, jax.tree.unflatten(structure, gathered))
        return _run_rows(module, count, product, x, chosen, weights, key)

    row_spec = partition_spec(axis_sizes(), ("batch", "length", None), x.shape)
    in_specs = (specs, row_spec, row_spec, row_spec, PartitionSpec())
    sharded = jax.shard_map(gather_and_run, in_specs=in_specs, out_specs=row_spec, check_vma=False)
    return sharded(arrays, x, chosen, weights, key)


def _run_rows(
    experts: FeedForward,
    count: int,
    product: GroupedProduct,
    x: Float[Array, "b l d"],
    chosen: Int[Array, "b l k"],
    weights: Float[Array, "b l k"],
    key: PRNGKeyArray | None,
) -> Float[Array, "b l d"]:
    """Return the outputs for rows of tokens on one device, which has all experts."""
    tokens = x.reshape(1, -1, x.shape[-1])
    token_count = tokens.shape[1]
    choices = sort_by_expert(chosen.reshape(1, -1, chosen.shape[-1]), count)
    choice_count = choices.order.shape[1]
    padding = (0, -choice_count % TILE_ROWS)

    token_of_row = jnp.pad(choices.order % token_count, ((0, 0), padding), constant_values=token_count)
    row_of_choice = choices.rank.reshape(1, -1, token_count)
    rows = gather_rows(tokens, token_of_row, jnp.moveaxis(row_of_choice, 1, 2))[0]

    expert_of_row = jnp.take(choices.expert[0], choices.order[0])
    expert_of_row = jnp.pad(expert_of_row, padding, constant_values=count)
    sorted_rows = SortedRows(choices.counts[0], jnp.minimum(expert_of_row, count - 1), product)
    has_expert = (expert_of_row < count)[:, None]
    outputs = jnp.where(has_expert, experts(rows, key, sorted_rows), 0)

    choice_of_row = jnp.pad(choices.order, ((0, 0), padding), constant_values=choice_count)
    returned = gather_rows(outputs[None], choices.rank, choice_of_row[..., None])
    returned = returned.reshape(1, -1, *tokens.shape[1:])
    return weighted_sum(returned, weights.reshape(1, -1, weights.shape[-1])).reshape(x.shape)


def _all_gather(array: Array, spec: PartitionSpec) -> Array:
    """Return the whole of an array of which each device has a part."""
    for axis, mesh_axes in enumerate(spec):
        if mesh_axes:
            array = jax.lax.all_gather(array, mesh_axes, axis=axis, tiled=True)
    return array
