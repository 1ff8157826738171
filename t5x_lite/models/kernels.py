"""Dot-product attention: which keys a query may see, and the computation under that mask."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from t5x_lite.models.layers import dropout


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


def mask(pattern: Any, queries: Places, keys: Places, *, causal: bool) -> Bool[Array, "b l m"]:
    """Which keys each query may see, under an attention kind of `patterns.py`."""
    query, key = queries.index[:, None], keys.index[None, :]
    seen = pattern.allowed(query, key)[None]
    if causal:
        past = (query >= key)[None]
        seen = seen & (past if keys.prefix is None else past | keys.prefix[:, None, :])
    own, other = queries.segment_ids[:, :, None], keys.segment_ids[:, None, :]
    return seen & (own == other) & (other > 0)


def dense(
    query: Float[Array, "b l h k"],
    key: Float[Array, "b m n k"],
    value: Float[Array, "b m n k"],
    seen: Bool[Array, "b l m"],
    *,
    bias: Float[Array, "h l m"] | None = None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: PRNGKeyArray | None = None,
) -> Float[Array, "b l h k"]:
    """softmax(scale · q·kᵀ + bias) · v with the softmax in float32; h query heads share n key heads in order.

    `scale` None is 1/sqrt(head_dim). A query that sees no key (padding) gets the mean of all values: finite, and masked
    out by its loss weight.
    """
    b, l, h, k = query.shape
    n = key.shape[2]
    grouped = query.reshape(b, l, n, h // n, k) * (k**-0.5 if scale is None else scale)
    scores = jnp.einsum("blngk,bmnk->bnglm", grouped, key, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + bias.reshape(n, h // n, *bias.shape[1:])
    scores = jnp.where(seen[:, None, None], scores, jnp.finfo(jnp.float32).min)
    shares = dropout(jax.nn.softmax(scores, axis=-1).astype(value.dtype), dropout_rate, dropout_key)
    return jnp.einsum("bnglm,bmnk->blngk", shares, value).reshape(b, l, h, k)
