"""Dispatch of tokens to experts and back.

Letters beside those of `layers.py`: g groups of tokens that are dispatched together, t tokens of a group, n choices of
a group (each token's first choices before all second ones), c places in an expert's buffer.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.experts.config import Capacity, Dropless
from t5x_lite.models.experts.rounds import sum_rounds

RunExperts = Callable[[Float[Array, "g e c d"]], Float[Array, "g e c d"]]
"""A function that applies every expert to its buffer."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SortedChoices:
    """The choices of each group, in the order in which experts serve them.

    First choices come in the order of tokens, second ones after them all (Lepikhin et al. 2021, Algorithm 1; Fedus et
    al. 2022, §2.2).

    Attributes:
        expert: the expert of each choice.
        position_in_expert: number of each choice among those of its expert.
        order: sorts choices by expert.
        rank: the inverse of `order`.
        counts: choices of each expert.
        starts: index of the first of them among the sorted choices.
    """

    expert: Int[Array, "g n"]
    position_in_expert: Int[Array, "g n"]
    order: Int[Array, "g n"]
    rank: Int[Array, "g n"]
    counts: Int[Array, "g e"]
    starts: Int[Array, "g e"]


def sort_by_expert(experts: Int[Array, "g t k"], count: int) -> SortedChoices:
    """Sort choices by expert, of which there are `count`; a choice of none comes last."""
    expert = jnp.moveaxis(experts, -1, 1).reshape(experts.shape[0], -1)
    order = jnp.argsort(expert, axis=1, stable=True)
    rank = jnp.argsort(order, axis=1)
    counts = jnp.sum(expert[..., None] == jnp.arange(count), axis=1)
    starts = jnp.cumsum(counts, axis=1) - counts
    start_of_expert = jnp.take_along_axis(starts, jnp.minimum(expert, count - 1), axis=1)
    return SortedChoices(expert, rank - start_of_expert, order, rank, counts, starts)


@jax.custom_vjp
def gather_rows(
    x: Float[Array, "g n d"], index: Int[Array, "g s"], inverse: Int[Array, "g n k"]
) -> Float[Array, "g s d"]:
    """Return the rows of `x` at `index`, 0 for an index past the last.

    `inverse` holds where each row went (past the last: nowhere), so that the backward pass gathers too: a scatter of
    rows is slow on every backend.
    """
    return _gather_or_zero(x, index)


def _gather_or_zero(x: Float[Array, "g n d"], index: Int[Array, "g s"]) -> Float[Array, "g s d"]:
    def gather(rows: Array, at: Array) -> Array:
        return rows.at[at].get(mode="fill", fill_value=0)

    return jax.vmap(gather)(x, index)


def _gather_rows_forward(x: Array, index: Array, inverse: Array) -> tuple[Array, Array]:
    return _gather_or_zero(x, index), inverse


def _gather_rows_backward(inverse: Array, gradient: Array) -> tuple[Array, None, None]:
    g, n, k = inverse.shape
    gathered = _gather_or_zero(gradient, inverse.reshape(g, n * k))
    return gathered.reshape(g, n, k, -1).sum(2), None, None


gather_rows.defvjp(_gather_rows_forward, _gather_rows_backward)


def dispatch_and_combine(
    x: Float[Array, "g t d"],
    weights: Float[Array, "g t k"],
    choices: SortedChoices,
    first: Int[Array, ""] | int,
    capacity: int,
    run_experts: RunExperts,
) -> Float[Array, "g t d"]:
    """Send the choices at `[first, first + capacity)` of each expert through it; the others contribute nothing."""
    g, t, d = x.shape
    n = choices.expert.shape[1]
    count = choices.counts.shape[1]
    index = choices.position_in_expert - first
    is_served = (choices.expert < count) & (index >= 0) & (index < capacity)
    slot = jnp.where(is_served, choices.expert * capacity + index, count * capacity)
    position = first + jnp.arange(capacity)
    sorted_index = jnp.minimum(choices.starts[..., None] + position, n - 1).reshape(g, -1)
    is_filled = (position < choices.counts[..., None]).reshape(g, -1)
    choice = jnp.where(is_filled, jnp.take_along_axis(choices.order, sorted_index, axis=1), n)
    token = jnp.where(is_filled, choice % t, t)
    buffers = gather_rows(x, token, jnp.moveaxis(slot.reshape(g, -1, t), 1, 2))
    outputs = run_experts(buffers.reshape(g, count, capacity, d)).reshape(g, count * capacity, d)
    returned = gather_rows(outputs, slot, choice[..., None]).reshape(g, -1, t, d)
    return weighted_sum(returned, weights)


def weighted_sum(outputs: Float[Array, "g k t d"], weights: Float[Array, "g t k"]) -> Float[Array, "g t d"]:
    """Sum the outputs of a token's choices, in float32."""
    out = jnp.einsum("gktd,gtk->gtd", outputs, weights, preferred_element_type=jnp.float32)
    return out.astype(outputs.dtype)


def dropless_dispatch(
    x: Float[Array, "g t d"],
    experts: Int[Array, "g t k"],
    weights: Float[Array, "g t k"],
    count: int,
    buffer: float,
    run_experts: RunExperts,
) -> Float[Array, "g t d"]:
    """Send every choice through its expert: in buffers of a fixed size, and in more rounds where one overflows."""
    t, k = experts.shape[1:]
    choices = sort_by_expert(experts, count)
    capacity = min(math.ceil(buffer * t * k / count), t)

    def run_round(x: Array, weights: Array, number: Array | int) -> Array:
        return dispatch_and_combine(x, weights, choices, number * capacity, capacity, run_experts)

    return sum_rounds(run_round, choices.counts.max(), capacity, t, x, weights)


def check_dispatch(config: ModelConfig, platform: str) -> None:
    """Raise ValueError for a model whose experts need what a platform does not have; see `sorting_kernel`."""
    for moe in config.mixtures:
        sorting_kernel(moe.dispatch, platform)


def sorting_kernel(dispatch: Capacity | Dropless, platform: str) -> str | None:
    """Return the kernel that multiplies tokens sorted by expert; None if tokens go to buffers of the experts.

    Raises:
        ValueError: the requested kernel is not for this platform.
    """
    if isinstance(dispatch, Capacity) or dispatch.kernel == "buffer":
        return None
    if dispatch.kernel == "megablox" and platform != "tpu":
        raise ValueError(f"dropless.kernel=megablox is for TPUs, not for {platform}; kernel=buffer works everywhere")
    if dispatch.kernel != "auto":
        return dispatch.kernel
    mesh = jax.sharding.get_abstract_mesh()
    experts_are_whole = mesh.empty or mesh.shape["tensor"] == 1
    if platform == "tpu" and experts_are_whole:
        return "megablox"
    return None
