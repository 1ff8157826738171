"""Rows of a table that is sharded over a mesh, with a gradient that is fast on a GPU."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from t5x_lite.models.sharding import (
    GPU_PLATFORMS,
    active_mesh,
    axis_sizes,
    mesh_axes,
    partition_spec,
    sum_over,
    target_platform,
)
from t5x_lite.models.weight_gradients import has_float32_weight_gradients

Function = TypeVar("Function", bound=Callable[..., Array])

MAX_ROWS_OF_PRODUCT_GRADIENT = 4096
"""Rows of a table up to which its gradient on a GPU is a product with zeros and ones."""


def look_up(table: Float[Array, "v d"], ids: Int[Array, "b l"], axis: str, dtype: DTypeLike) -> Float[Array, "b l d"]:
    """Return rows of a table.

    On a mesh a device looks up its channels for the tokens of all devices that have other channels of the table, and
    sends each of them the states of its tokens, not the table or its gradient.

    Args:
        table: the table.
        ids: numbers of rows.
        axis: logical axis of the rows of the table; that of its channels is `embed`.
        dtype: type of the result. The gradient of the table is summed on each device in float32, and then over devices
            in this type; in float32 inside of `float32_weight_gradients`.
    """
    sum_dtype = jnp.dtype(jnp.float32 if has_float32_weight_gradients() else dtype)
    return _look_up(table, ids, axis, jnp.dtype(dtype), sum_dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _look_up(table: Array, ids: Array, axis: str, dtype: np.dtype, sum_dtype: np.dtype) -> Float[Array, "b l d"]:
    shardings = _Shardings(table, ids, axis)

    def look_up_shard(shard: Float[Array, "shard d"], ids: Array) -> Float[Array, "b l d"]:
        row, in_shard = shardings.locate(shardings.gather_ids(ids), shard)
        states = jnp.where(in_shard[..., None], shard[row].astype(dtype), 0)
        return shardings.send_states(sum_over(states, shardings.row_axes))

    return shardings.map(look_up_shard, (shardings.table, shardings.ids), shardings.states)(table, ids)


def _look_up_forward(
    table: Array, ids: Array, axis: str, dtype: np.dtype, sum_dtype: np.dtype
) -> tuple[Array, tuple[Array, Array]]:
    return _look_up(table, ids, axis, dtype, sum_dtype), (table, ids)


def _look_up_backward(
    axis: str, dtype: np.dtype, sum_dtype: np.dtype, residuals: tuple[Array, Array], gradient: Float[Array, "b l d"]
) -> tuple[Array, np.ndarray]:
    table, ids = residuals
    shardings = _Shardings(table, ids, axis)

    def add_to_shard(shard: Float[Array, "shard d"], ids: Array, gradient: Float[Array, "b l d"]) -> Array:
        row, in_shard = shardings.locate(shardings.gather_ids(ids), shard)
        gradient = shardings.return_gradients(gradient)
        total = _add_rows(row, jnp.where(in_shard[..., None], gradient, 0), len(shard))
        return sum_over(total.astype(sum_dtype), shardings.sum_axes).astype(shard.dtype)

    in_specs = (shardings.table, shardings.ids, shardings.states)
    total = shardings.map(add_to_shard, in_specs, shardings.table)(table, ids, gradient)
    return total, np.zeros(ids.shape, jax.dtypes.float0)


_look_up.defvjp(_look_up_forward, _look_up_backward)


class _Shardings:
    """Shardings of a table, of ids and of the states looked up, over the mesh in context.

    Attributes:
        table: sharding of the table.
        ids: sharding of the ids.
        states: sharding of what is looked up.
        row_axes: mesh axes over which the rows of the table are split.
        channel_axes: those over which its channels are split.
        sum_axes: those over which only the ids are split.
    """

    def __init__(self, table: Float[Array, "v d"], ids: Int[Array, "b l"], axis: str) -> None:
        self.table = PartitionSpec(None, None)
        self.ids = self.states = PartitionSpec()
        if active_mesh() is not None:
            sizes = axis_sizes()
            self.table = partition_spec(sizes, (axis, "embed"), table.shape)
            self.ids = partition_spec(sizes, ("batch", "length"), ids.shape)
            self.states = PartitionSpec(*self.ids, None)
        self.row_axes = mesh_axes(self.table[:1])
        self.channel_axes = mesh_axes(self.table[1:])
        self.sum_axes = tuple(axis for axis in mesh_axes(self.ids) if axis not in self.channel_axes)

    def map(self, function: Function, in_specs: tuple[PartitionSpec, ...], out_specs: PartitionSpec) -> Function:
        """Return a function that every device computes on its shards; without a mesh, the function itself."""
        if active_mesh() is None:
            return function
        return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def locate(self, ids: Int[Array, "b l"], shard: Float[Array, "shard d"]) -> tuple[Array, Bool[Array, "b l"]]:
        """Return the numbers of rows in this device's shard of the table, and whether they are in it."""
        if not self.row_axes:
            return ids, jnp.ones(ids.shape, bool)
        row = ids - jax.lax.axis_index(self.row_axes) * len(shard)
        return jnp.clip(row, 0, len(shard) - 1), (row >= 0) & (row < len(shard))

    def gather_ids(self, ids: Int[Array, "b l"]) -> Int[Array, "b l"]:
        """Return the ids of all devices that have other channels of this device's rows of the table."""
        for axis in self.channel_axes:
            split = self._split_by(axis)
            if split is not None:
                ids = jax.lax.all_gather(ids, axis, axis=split, tiled=True)
        return ids

    def send_states(self, states: Float[Array, "b l shard"]) -> Float[Array, "b l d"]:
        """Exchange channels of states for those of this device's ids: all of them."""
        for axis in reversed(self.channel_axes):
            split = self._split_by(axis)
            if split is None:
                states = jax.lax.all_gather(states, axis, axis=2, tiled=True)
            else:
                states = jax.lax.all_to_all(states, axis, split_axis=split, concat_axis=2, tiled=True)
        return states

    def return_gradients(self, gradients: Float[Array, "b l d"]) -> Float[Array, "b l shard"]:
        """Exchange gradients of states for those of this device's channels: those of all ids."""
        for axis in self.channel_axes:
            split = self._split_by(axis)
            if split is None:
                shards = jnp.split(gradients, jax.lax.axis_size(axis), axis=2)
                gradients = jnp.stack(shards)[jax.lax.axis_index(axis)]
            else:
                gradients = jax.lax.all_to_all(gradients, axis, split_axis=2, concat_axis=split, tiled=True)
        return gradients

    def _split_by(self, axis: str) -> int | None:
        """Return the axis of the ids that a mesh axis splits; None: its devices have the same ids."""
        return next((number for number, part in enumerate(self.ids) if axis in mesh_axes([part])), None)


def _add_rows(ids: Int[Array, "b l"], gradient: Float[Array, "b l d"], rows: int) -> Float[Array, "v d"]:
    """Return the gradient of a table of `rows` rows, at least in float32.

    In bfloat16 the sum over the tokens of one row stops growing at 256 times their gradient. On a GPU many tokens in
    few rows also wait for each other in a scatter (BERT-large on an H100: 85 of 245 ms a step for token types and
    positions), so that a small table's gradient is a product there.
    """
    flat_ids = ids.reshape(-1)
    flat_gradient = gradient.reshape(-1, gradient.shape[-1])
    dtype = jnp.promote_types(gradient.dtype, jnp.float32)
    if target_platform() in GPU_PLATFORMS and rows <= MAX_ROWS_OF_PRODUCT_GRADIENT:
        one_hot = jax.nn.one_hot(flat_ids, rows, dtype=gradient.dtype)
        return jnp.einsum("nv,nd->vd", one_hot, flat_gradient, preferred_element_type=dtype)
    return jnp.zeros((rows, gradient.shape[-1]), dtype).at[flat_ids].add(flat_gradient.astype(dtype))
