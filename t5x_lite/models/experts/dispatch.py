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
from t5x_lite.models.experts.config import Dropless


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Queue:
    """The choices of each group, in the order in which experts serve them: first choices in the order of tokens, second
    ones after them all (Lepikhin et al. 2021, Algorithm 1; Fedus et al. 2022, §2.2).

    `expert` and `place` (in the expert's queue) are those of each choice; `order` sorts choices by expert, `rank`
    undoes that; `counts` is the length of each queue and `starts` where it begins in that order.
    """

    expert: Int[Array, "g n"]
    place: Int[Array, "g n"]
    order: Int[Array, "g n"]
    rank: Int[Array, "g n"]
    counts: Int[Array, "g e"]
    starts: Int[Array, "g e"]


def sort_by_expert(experts: Int[Array, "g t k"], count: int) -> Queue:
    """Sort choices by expert; a choice of no expert comes last."""
    expert = jnp.moveaxis(experts, -1, 1).reshape(experts.shape[0], -1)
    order = jnp.argsort(expert, axis=1, stable=True)
    rank = jnp.argsort(order, axis=1)
    counts = jnp.sum(expert[..., None] == jnp.arange(count), axis=1)
    starts = jnp.cumsum(counts, axis=1) - counts
    begun = jnp.take_along_axis(starts, jnp.minimum(expert, count - 1), axis=1)
    return Queue(expert, rank - begun, order, rank, counts, starts)


@jax.custom_vjp
def rows(x: Float[Array, "g n d"], index: Int[Array, "g s"], back: Int[Array, "g n k"]) -> Float[Array, "g s d"]:
    """The rows of `x` at `index`, 0 for an index past the last.

    `back` says where each row went (past the last: nowhere), so that the backward pass gathers too: a scatter of rows
    is slow on every backend.
    """
    return jax.vmap(lambda own, at: own.at[at].get(mode="fill", fill_value=0))(x, index)


def _rows_forward(x: Array, index: Array, back: Array) -> tuple[Array, Array]:
    return rows(x, index, back), back


def _rows_backward(back: Array, grad: Array) -> tuple[Array, None, None]:
    g, n, k = back.shape
    gathered = jax.vmap(lambda own, at: own.at[at].get(mode="fill", fill_value=0))(grad, back.reshape(g, n * k))
    return gathered.reshape(g, n, k, -1).sum(2), None, None


rows.defvjp(_rows_forward, _rows_backward)


def dispatch_and_combine(
    x: Float[Array, "g t d"],
    weights: Float[Array, "g t k"],
    queue: Queue,
    first: Int[Array, ""] | int,
    room: int,
    run: Callable[[Float[Array, "g e c d"]], Float[Array, "g e c d"]],
) -> Float[Array, "g t d"]:
    """Choices with a place from `first` to `first + room` pass their experts; the others contribute nothing."""
    (g, t, d), n, count = x.shape, queue.expert.shape[1], queue.counts.shape[1]
    served = (queue.expert < count) & (queue.place >= first) & (queue.place < first + room)
    slot = jnp.where(served, queue.expert * room + queue.place - first, count * room)
    place = first + jnp.arange(room)
    sorted_at = jnp.minimum(queue.starts[..., None] + place, n - 1).reshape(g, -1)
    filled = (place < queue.counts[..., None]).reshape(g, -1)
    origin = jnp.where(filled, jnp.take_along_axis(queue.order, sorted_at, axis=1), n)
    token = jnp.where(filled, origin % t, t)
    buffers = rows(x, token, jnp.moveaxis(slot.reshape(g, -1, t), 1, 2))
    y = run(buffers.reshape(g, count, room, d)).reshape(g, count * room, d)
    back = rows(y, slot, origin[..., None]).reshape(g, -1, t, d)
    return weighted(back, weights)


def weighted(back: Float[Array, "g k t d"], weights: Float[Array, "g t k"]) -> Float[Array, "g t d"]:
    """Sum over a token's choices, in float32."""
    return jnp.einsum("gktd,gtk->gtd", back, weights, preferred_element_type=jnp.float32).astype(back.dtype)


def dropless_dispatch(
    x: Float[Array, "g t d"],
    experts: Int[Array, "g t k"],
    weights: Float[Array, "g t k"],
    count: int,
    buffer: float,
    run: Callable[[Float[Array, "g e c d"]], Float[Array, "g e c d"]],
) -> Float[Array, "g t d"]:
    """Every choice passes its expert: in buffers of a fixed size, and where one overflows in more rounds of them."""
    t, k = experts.shape[1:]
    queue = sort_by_expert(experts, count)
    room = min(math.ceil(buffer * t * k / count), t)
    longest = queue.counts.max()
    out = dispatch_and_combine(x, weights, queue, 0, room, run)
    rounds = math.ceil(t / room)
    if rounds == 1:
        return out

    @jax.checkpoint
    def one(x: Array, weights: Array, number: Array) -> Array:
        return dispatch_and_combine(x, weights, queue, number * room, room, run)

    def rest(x: Array, weights: Array) -> Array:
        def add(so_far: Array, number: Array) -> tuple[Array, None]:
            more = jax.lax.cond(longest > number * room, one, lambda x, *_: jnp.zeros_like(x), x, weights, number)
            return so_far + more, None

        return jax.lax.scan(add, jnp.zeros_like(x), jnp.arange(1, rounds))[0]

    return out + jax.lax.cond(longest > room, jax.checkpoint(rest), lambda x, _: jnp.zeros_like(x), x, weights)


def _megablox(x: Array, matrices: Array, sizes: Array) -> Array:
    from jax.experimental.pallas.ops.tpu.megablox import ops

    return ops.gmm(x, matrices, sizes, x.dtype)


PRODUCTS: dict[str, Callable[[Array, Array, Array], Array]] = {"ragged": jax.lax.ragged_dot, "megablox": _megablox}


def check_dispatch(config: ModelConfig, of: str) -> None:
    """Refuse a model whose experts need what a platform does not have; see `dropless_kernel`."""
    for moe in config.mixtures:
        if isinstance(moe.dispatch, Dropless):
            dropless_kernel(moe.dispatch, of)


def dropless_kernel(dispatch: Dropless, of: str) -> str:
    """What multiplies tokens and experts on a platform.

    Raises:
        ValueError: it is asked for what the platform does not have.
    """
    if dispatch.kernel == "megablox" and of != "tpu":
        raise ValueError(f"dropless.kernel=megablox is for TPUs, not for {of}; kernel=buffer works everywhere")
    if dispatch.kernel != "auto":
        return dispatch.kernel
    mesh = jax.sharding.get_abstract_mesh()
    whole = mesh.empty or mesh.shape["expert"] * mesh.shape["tensor"] == 1
    return "megablox" if of == "tpu" and whole else "buffer"
