"""Dropless dispatch by sorted rows: a device multiplies tokens, sorted by expert, with the matrices of its experts.

Letters are those of `layers.py` and `dispatch.py`; n sorted choices of a device with their padding.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray

from t5x_lite.models.experts.dispatch import gather_rows, sort_by_expert, weighted_sum
from t5x_lite.models.experts.exchange import EXPERT_AXIS, exchange, exchange_window
from t5x_lite.models.experts.rounds import sum_rounds
from t5x_lite.models.feedforward.layer import FeedForward
from t5x_lite.models.layers import GroupedProduct, SortedRows, Weight
from t5x_lite.models.remat import name_exchanged_rows
from t5x_lite.models.sharding import active_mesh, axis_sizes, gather_shards, mesh_axes, partition_spec

TILE_ROWS = 128
"""Rows that megablox multiplies at a time."""


def _megablox(x: Float[Array, "n d"], matrices: Float[Array, "e d f"], sizes: Int[Array, "e"]) -> Float[Array, "n f"]:
    from jax.experimental.pallas.ops.tpu.megablox import ops

    return ops.gmm(x, matrices, sizes, x.dtype)


GROUPED_PRODUCTS: dict[str, GroupedProduct] = {"ragged": jax.lax.ragged_dot, "megablox": _megablox}

RunExperts = Callable[..., Float[Array, "n d"]]
"""A function that applies experts to rows sorted by expert, given the number of rows of each. Further rows give 0."""


def dispatch_sorted(
    experts: FeedForward,
    count: int,
    kernel: str,
    buffer: float,
    x: Float[Array, "b l d"],
    chosen: Int[Array, "b l k"],
    weights: Float[Array, "b l k"],
    key: PRNGKeyArray | None,
) -> Float[Array, "b l d"]:
    """Return the weighted outputs of the experts that each token has chosen.

    On a mesh each device gathers the weights of its experts here, so that neither they nor their gradients are ever
    whole outside. Where `expert` has several devices, tokens travel to the experts.

    Args:
        experts: the experts, side by side.
        count: how many there are.
        kernel: key in `GROUPED_PRODUCTS`.
        buffer: size of a device's buffer for tokens of other devices, relative to an equal share.
        x: tokens.
        chosen: the experts of each token; `count` is none.
        weights: their weights.
        key: turns on dropout.
    """
    product = GROUPED_PRODUCTS[kernel]
    if active_mesh() is None:
        return _send_rows(partial(_run_experts, experts, product, key), count, x, chosen, weights)
    sizes = axis_sizes()
    graph, params, *keys_of_adapters = nnx.split(experts, Weight, ...)
    arrays, structure = jax.tree.flatten(params)
    matrices = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, Weight))
    specs = [partition_spec(sizes, matrix.axes.names, matrix.shape) for matrix in matrices]
    row_spec = partition_spec(sizes, ("batch", "length", None), x.shape)

    def gather_and_run(
        shards: Sequence[Array],
        keys_of_adapters: Sequence[nnx.State],
        x: Array,
        chosen: Array,
        weights: Array,
        key: PRNGKeyArray | None,
    ) -> Float[Array, "b l d"]:
        gathered = [_gather_weights(shard.astype(x.dtype), spec) for shard, spec in zip(shards, specs, strict=True)]
        module = nnx.merge(graph, jax.tree.unflatten(structure, gathered), *keys_of_adapters)
        if key is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(mesh_axes(row_spec)))
        run_experts: RunExperts = partial(_run_experts, module, product, key)
        if sizes[EXPERT_AXIS] > 1:
            run_experts = partial(_exchange_rows, run_experts, buffer)
        return _send_rows(run_experts, count, x, chosen, weights)

    in_specs = (specs, PartitionSpec(), row_spec, row_spec, row_spec, PartitionSpec())
    sharded = jax.shard_map(gather_and_run, in_specs=in_specs, out_specs=row_spec, check_vma=False)
    return sharded(arrays, keys_of_adapters, x, chosen, weights, key)


def _send_rows(
    run_experts: RunExperts,
    count: int,
    x: Float[Array, "b l d"],
    chosen: Int[Array, "b l k"],
    weights: Float[Array, "b l k"],
) -> Float[Array, "b l d"]:
    """Sort the choices of one device's tokens by expert, run the experts, and sum their outputs for each token."""
    tokens = x.reshape(1, -1, x.shape[-1])
    token_count = tokens.shape[1]
    choices = sort_by_expert(chosen.reshape(1, -1, chosen.shape[-1]), count)
    choice_count = choices.order.shape[1]
    padding = (0, -choice_count % TILE_ROWS)

    token_of_row = jnp.pad(choices.order % token_count, ((0, 0), padding), constant_values=token_count)
    row_of_choice = choices.rank.reshape(1, -1, token_count)
    rows = gather_rows(tokens, token_of_row, jnp.moveaxis(row_of_choice, 1, 2))[0]

    outputs = run_experts(rows, choices.counts[0])

    choice_of_row = jnp.pad(choices.order, ((0, 0), padding), constant_values=choice_count)
    returned = gather_rows(outputs[None], choices.rank, choice_of_row[..., None])
    returned = returned.reshape(1, -1, *tokens.shape[1:])
    return weighted_sum(returned, weights.reshape(1, -1, weights.shape[-1])).reshape(x.shape)


def _run_experts(
    experts: FeedForward,
    product: GroupedProduct,
    key: PRNGKeyArray | None,
    rows: Float[Array, "n d"],
    counts: Int[Array, "e"],
    number: Int[Array, ""] | int = 0,
) -> Float[Array, "n d"]:
    """Apply experts to the rows on their device in a round; each round has other dropout."""
    expert_of_row = jnp.searchsorted(jnp.cumsum(counts), jnp.arange(len(rows)), side="right", method="compare_all")
    if key is not None:
        key = jax.random.fold_in(key, number)
    return experts(rows, key, SortedRows(counts, expert_of_row, product))


def _exchange_rows(
    run_experts: RunExperts, buffer: float, rows: Float[Array, "n d"], counts: Int[Array, "e"]
) -> Float[Array, "n d"]:
    """Send rows to the devices of their experts, run these there, and send the outputs back.

    A device has room for `buffer` times the rows of one device. Where tokens choose so unevenly that one device needs
    more, all devices do further rounds.
    """
    row_count = len(rows)
    all_counts = jax.lax.all_gather(counts, EXPERT_AXIS)
    devices, experts = all_counts.shape
    max_needed = devices * row_count
    capacity = min(math.ceil(buffer * row_count / TILE_ROWS) * TILE_ROWS, max_needed)
    received = all_counts.sum(0).reshape(devices, experts // devices).sum(1)
    # All groups of devices run the same rounds: then no device begins another collective than those that it waits for.
    most_received = jax.lax.pmax(received.max(), jax.sharding.get_abstract_mesh().manual_axes)

    def run_round(rows: Float[Array, "n d"], number: Int[Array, ""] | int) -> Float[Array, "n d"]:
        window = exchange_window(all_counts, number * capacity, capacity)
        inputs = name_exchanged_rows(exchange(rows, window.to_experts, window.back, capacity))
        outputs = run_experts(inputs, window.rows_of_expert, number)
        return name_exchanged_rows(exchange(outputs, window.back, window.to_experts, row_count))

    return sum_rounds(run_round, most_received, capacity, max_needed, rows)


def _gather_weights(shard: Array, spec: PartitionSpec) -> Array:
    """Return the weights of this device's experts, of which the devices of the other mesh axes have parts."""
    for axis, part in enumerate(spec):
        if part is not None and EXPERT_AXIS not in mesh_axes([part]):
            shard = gather_shards(shard, spec, axis)
    return shard
