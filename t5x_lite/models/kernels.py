"""Dot-product attention: which keys a query may see, and the forms in which it is computed under that mask."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from t5x_lite.models.layers import dropout
from t5x_lite.models.patterns import Local


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Places:
    """Where the tokens of one side of attention stand: `index` in the row (`[l]`), and the segment of each (`[b, l]`).

    Causality goes by `index`; a token sees its own segment alone; segment 0 is padding and is seen by none. Keys in
    `prefix` are seen by earlier queries of their segment too.
    """

    index: Int[Array, "l"]
    segment_ids: Int[Array, "b l"]
    prefix: Bool[Array, "b l"] | None = None


@dataclass(frozen=True)
class View:
    """What the layers of one call share: where queries and keys stand, and what their places do to them.

    `rotate` turns queries and new keys; `bias`, of the `index` of queries and of keys, is added to the scores; with
    `causal` a query sees no later key.
    """

    queries: Places
    keys: Places
    causal: bool
    rotate: Callable[[Float[Array, "b l h k"]], Float[Array, "b l h k"]] = lambda x: x
    bias: Callable[[Int[Array, "l"], Int[Array, "m"]], Float[Array, "h l m"]] | None = None


def mask(pattern: Any, view: View) -> Bool[Array, "b l m"]:
    """Which keys each query may see, under an attention kind of `patterns.py`."""
    query, key = view.queries.index[:, None], view.keys.index[None, :]
    seen = pattern.allowed(query, key)[None]
    if view.causal:
        past = (query >= key)[None]
        seen = seen & (past if view.keys.prefix is None else past | view.keys.prefix[:, None, :])
    own, other = view.queries.segment_ids[:, :, None], view.keys.segment_ids[:, None, :]
    return seen & (own == other) & (other > 0)


@dataclass(frozen=True)
class Settings:
    """What does not change from call to call: `scale` None is 1/sqrt(head_dim)."""

    scale: float | None = None
    dropout: float = 0.0


WHOLE_SQUARE = 2**22
"""Scores of one head above this number (2048 · 2048) are made for some queries at a time."""
CHUNK_BYTES = 64 * 2**20
"""What the scores of those queries may take, over the batch and all heads."""
SMALLEST_BLOCK = 64
"""Narrower bands are computed in blocks of this many queries: smaller products are slower than the work they save."""


def attend(
    query: Float[Array, "b l h k"],
    key: Float[Array, "b m n k"],
    value: Float[Array, "b m n k"],
    pattern: Any,
    view: View,
    settings: Settings,
    dropout_key: PRNGKeyArray | None = None,
) -> Float[Array, "b l h k"]:
    """softmax(scale · q·kᵀ + bias) · v over the keys that may be seen, by the form that does the least work.

    A band of a sequence that looks at itself is computed in blocks, O(length · window); a square that is large, for
    some queries at a time; what is left, as one square. All give the same values.
    """
    l = query.shape[1]
    if isinstance(pattern, Local) and view.queries is view.keys and 2 * max(pattern.window, SMALLEST_BLOCK) < l:
        return banded(query, key, value, pattern, view, settings, dropout_key)
    if l * key.shape[1] > WHOLE_SQUARE and l > 1:
        return chunked(query, key, value, pattern, view, settings, dropout_key)
    return dense(query, key, value, pattern, view, settings, dropout_key)


def dense(
    query: Float[Array, "b l h k"],
    key: Float[Array, "b m n k"],
    value: Float[Array, "b m n k"],
    pattern: Any,
    view: View,
    settings: Settings,
    dropout_key: PRNGKeyArray | None = None,
) -> Float[Array, "b l h k"]:
    """All scores at once, the softmax in float32; h query heads share n key heads in order.

    A query that sees no key (padding) gets the mean of all values: finite, and masked out by its loss weight.
    """
    b, l, h, k = query.shape
    n = key.shape[2]
    scaled = query * (k**-0.5 if settings.scale is None else settings.scale)
    grouped = scaled.reshape(b, l, n, h // n, k)
    scores = jnp.einsum("blngk,bmnk->bnglm", grouped, key, preferred_element_type=jnp.float32)
    if view.bias is not None:
        bias = view.bias(view.queries.index, view.keys.index)
        scores = scores + bias.reshape(n, h // n, *bias.shape[1:])
    scores = jnp.where(mask(pattern, view)[:, None, None], scores, jnp.finfo(jnp.float32).min)
    shares = dropout(jax.nn.softmax(scores, axis=-1).astype(value.dtype), settings.dropout, dropout_key)
    return jnp.einsum("bnglm,bmnk->blngk", shares, value).reshape(b, l, h, k)


def chunked(
    query: Float[Array, "b l h k"],
    key: Float[Array, "b m n k"],
    value: Float[Array, "b m n k"],
    pattern: Any,
    view: View,
    settings: Settings,
    dropout_key: PRNGKeyArray | None = None,
) -> Float[Array, "b l h k"]:
    """`dense` for as many queries at a time as keep scores under `CHUNK_BYTES`, made again in the backward pass."""
    b, l, h, _ = query.shape
    size = max(CHUNK_BYTES // (4 * b * h * key.shape[1]), 1)
    count = -(-l // size)

    def parts(x: Array, axis: int) -> Array:
        cut = jnp.pad(x, [(0, count * size - l if n == axis else 0) for n in range(x.ndim)])
        return jnp.moveaxis(cut.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :]), axis, 0)

    @jax.checkpoint
    def one(part: tuple[Array, Array, Array, Array | None]) -> Array:
        own, index, segment_ids, key_of_part = part
        seen = replace(view, queries=Places(index, segment_ids))
        return dense(own, key, value, pattern, seen, settings, key_of_part)

    keys = None if dropout_key is None else jax.random.split(dropout_key, count)
    queries = view.queries
    made = jax.lax.map(one, (parts(query, 1), parts(queries.index, 0), parts(queries.segment_ids, 1), keys))
    return jnp.moveaxis(made, 0, 1).reshape(b, count * size, *query.shape[2:])[:, :l]


def banded(
    query: Float[Array, "b l h k"],
    key: Float[Array, "b l n k"],
    value: Float[Array, "b l n k"],
    pattern: Local,
    view: View,
    settings: Settings,
    dropout_key: PRNGKeyArray | None = None,
) -> Float[Array, "b l h k"]:
    """A band in blocks of at least its window: each block of queries looks at itself and at its neighbours alone."""
    b, l = query.shape[:2]
    size = max(pattern.window, SMALLEST_BLOCK)
    count = -(-l // size)
    sides = 1 if view.causal and view.keys.prefix is None else 2

    def blocks(x: Array) -> Array:
        """`[b·count, size, …]`, the length padded with zeros."""
        padded = jnp.pad(x, [(0, 0), (0, count * size - l), *[(0, 0)] * (x.ndim - 2)])
        return padded.reshape(b * count, size, *x.shape[2:])

    def beside(x: Array) -> Array:
        """`[b·count, (1 + sides)·size, …]`: the block before each, itself, and the one after where that is seen."""
        own = blocks(x).reshape(b, count, size, *x.shape[2:])
        around = jnp.pad(own, [(0, 0), (1, sides - 1), *[(0, 0)] * (own.ndim - 2)])
        near = jnp.concatenate([around[:, n : n + count] for n in range(1 + sides)], axis=2)
        return near.reshape(b * count, (1 + sides) * size, *x.shape[2:])

    prefix = None if view.keys.prefix is None else beside(view.keys.prefix)
    near = Places(jnp.arange((1 + sides) * size), beside(view.keys.segment_ids), prefix)
    places = Places(size + jnp.arange(size), blocks(view.queries.segment_ids))
    seen = replace(view, queries=places, keys=near)
    made = dense(blocks(query), beside(key), beside(value), pattern, seen, settings, dropout_key)
    return made.reshape(b, count * size, *query.shape[2:])[:, :l]
