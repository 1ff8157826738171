"""Exchange of rows of tokens between the devices that share the experts of a layer.

Letters beside those of `sorted_dispatch.py`: p devices of the mesh axis `expert`, e experts of all of them together.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from t5x_lite.models.sharding import target_platform

EXPERT_AXIS = "expert"
"""The mesh axis whose devices exchange rows."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slices:
    """Slices of rows that a device sends and receives in one exchange.

    A device sends one slice to each expert, in the order of all experts; or it sends them back, from each of its own
    experts to each device, in the order of devices.

    Attributes:
        starts: index of the first row of each slice that it sends.
        sizes: number of rows of each.
        received_starts: index of the first row of each slice on the device that receives it.
        received_sizes: number of rows of each slice that this device receives, in the order of their senders.
    """

    starts: Int[Array, "e"]
    sizes: Int[Array, "e"]
    received_starts: Int[Array, "e"]
    received_sizes: Int[Array, "e"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Window:
    """The part of all rows for which each device has room at a time.

    Attributes:
        to_experts: slices from the tokens' devices to those of the experts.
        back: the same slices on their way back.
        rows_of_expert: number of rows that each expert of this device receives.
    """

    to_experts: Slices
    back: Slices
    rows_of_expert: Int[Array, "x"]


def exchange_window(counts: Int[Array, "p e"], first: Int[Array, ""] | int, capacity: int) -> Window:
    """Return the slices of the rows `[first, first + capacity)` of each device, sorted by expert and then by sender.

    Must be called in `jax.shard_map`.

    Args:
        counts: how many rows each device has for each expert. Its own are sorted by expert.
        first: index of the first row, among all that a device receives.
        capacity: number of rows that a device receives at a time.
    """
    devices, experts = counts.shape
    local_experts = experts // devices
    # Rows that a device receives for its earlier experts, and for the same expert from earlier devices.
    by_device = counts.sum(0).reshape(devices, local_experts)
    earlier_experts = (jnp.cumsum(by_device, 1) - by_device).reshape(experts)
    places = earlier_experts + jnp.cumsum(counts, 0) - counts
    begin = jnp.clip(places, first, first + capacity)
    sizes = jnp.clip(places + counts, first, first + capacity) - begin
    starts = jnp.cumsum(counts, 1) - counts + begin - places

    device = jax.lax.axis_index(EXPERT_AXIS)

    def of_local_experts(values: Int[Array, "p e"]) -> Int[Array, "e"]:
        return jax.lax.dynamic_slice_in_dim(values, device * local_experts, local_experts, axis=1).reshape(-1)

    to_experts = Slices(starts[device], sizes[device], begin[device] - first, of_local_experts(sizes))
    back = Slices(of_local_experts(begin - first), of_local_experts(sizes), of_local_experts(starts), sizes[device])
    return Window(to_experts, back, of_local_experts(sizes).reshape(devices, local_experts).sum(0))


def exchange(rows: Float[Array, "n d"], slices: Slices, back: Slices, capacity: int) -> Float[Array, "m d"]:
    """Send slices of rows to their devices. Return an array of `capacity` rows: those received, and zeros.

    Must be called in `jax.shard_map`.

    Args:
        rows: rows of this device.
        slices: those that are sent.
        back: the same slices on the way back, which is that of their gradients.
        capacity: number of rows to return.
    """
    row_count = len(rows)

    def send(slices: tuple[Slices, Slices], rows: Float[Array, "n d"]) -> Float[Array, "m d"]:
        return _send(rows, slices[0], capacity)

    def send_gradients(slices: tuple[Slices, Slices], gradients: Float[Array, "m d"]) -> Float[Array, "n d"]:
        return _send(gradients, slices[1], row_count)

    return jax.custom_derivatives.linear_call(send, send_gradients, (slices, back), rows)


def _send(rows: Float[Array, "n d"], slices: Slices, capacity: int) -> Float[Array, "m d"]:
    output = jnp.zeros((capacity, rows.shape[1]), rows.dtype)
    sent = (slices.starts, slices.sizes)
    received = (slices.received_starts, slices.received_sizes)
    if target_platform() == "cpu":
        return simulate_ragged_all_to_all(rows, output, *sent, *received, axis_name=EXPERT_AXIS)
    return jax.lax.ragged_all_to_all(rows, output, *sent, *received, axis_name=EXPERT_AXIS)


def simulate_ragged_all_to_all(
    operand: Float[Array, "n d"],
    output: Float[Array, "m d"],
    input_offsets: Int[Array, "e"],
    send_sizes: Int[Array, "e"],
    output_offsets: Int[Array, "e"],
    recv_sizes: Int[Array, "e"],
    *,
    axis_name: str,
) -> Float[Array, "m d"]:
    """Compute `jax.lax.ragged_all_to_all` from all rows of all devices, for CPUs: XLA has none for them.

    The arguments are those of JAX's function.
    """
    del recv_sizes  # every sender's sizes are known
    devices = jax.lax.axis_size(axis_name)
    slices_of_device = len(input_offsets) // devices
    destinations = jnp.arange(len(input_offsets)) // slices_of_device
    is_for_me = destinations == jax.lax.axis_index(axis_name)
    row = jnp.arange(len(operand))[:, None]
    nowhere = len(output)
    gathered = jax.lax.all_gather((operand, input_offsets, send_sizes, output_offsets), axis_name)
    for sender in range(devices):
        rows, starts, sizes, places = jax.tree.map(lambda array, sender=sender: array[sender], gathered)
        is_in_slice = is_for_me & (row >= starts) & (row < starts + sizes)
        place = jnp.where(is_in_slice, places + row - starts, nowhere).min(1)
        output = output.at[place].set(rows, mode="drop")
    return output
