"""One call of attention: its queries, keys and values, where they stand in the row, and which keys a query may see."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from t5x_lite.models.attention.kinds import Allowed

MASK_VALUE = float(jnp.finfo(jnp.float32).min)
"""The score of a key that is not seen."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenPositions:
    """Where the tokens of one side of attention stand: `index` in the row (`[l]`), and the segment of each (`[b, l]`).

    Causality goes by `index`; a token sees its own segment alone; segment 0 is padding and is seen by none. Keys in
    `prefix` are seen by earlier queries of their segment too. `at` is the place that an attention kind goes by, where
    rows of unequal length begin at different indices. `one_text`: every row is one text without padding, as is known
    while tracing.
    """

    index: Any  # Int[Array, "l"], known while tracing (np.ndarray) where a row looks at itself
    segment_ids: Int[Array, "b l"]
    prefix: Bool[Array, "b l"] | None = None
    at: Int[Array, "b l"] | None = None
    one_text: bool = field(default=False, metadata={"static": True})

    @property
    def in_order(self) -> bool:
        """Whether the tokens stand at 0, 1, 2, …, as is known while tracing."""
        if isinstance(self.index, jax.core.Tracer):
            return False
        return np.array_equal(self.index, np.arange(len(self.index)))

    def __getitem__(self, places: Any) -> "TokenPositions":
        """Those at some places of the row."""
        take = lambda x: None if x is None else x[:, places]  # noqa: E731
        return TokenPositions(self.index[places], self.segment_ids[:, places], take(self.prefix), take(self.at))


@dataclass(frozen=True)
class AttentionContext:
    """What the layers of one call share: where queries and keys stand, and what their places do to them.

    `rotate` turns queries and new keys by their positions `at`; `bias`, of the `index` of queries and of keys, is added
    to the scores (`offset_bias` is the same function of offsets, key - query); with `causal` a query sees no later key.
    """

    queries: TokenPositions
    keys: TokenPositions
    causal: bool
    at: Int[Array, "b l"] | None = None
    rotate: Callable[[Float[Array, "b l h k"], Any], Float[Array, "b l h k"]] = lambda x, at: x
    bias: Callable[[Int[Array, "l"], Int[Array, "m"]], Float[Array, "h l m"]] | None = None
    offset_bias: Callable[[Int[Array, "..."]], Float[Array, "h ..."]] | None = None

    @property
    def backward(self) -> bool:
        """Whether no query sees a later key."""
        return self.causal and self.keys.prefix is None


Kernel = Literal["auto", "xla", "cudnn", "splash", "flash"]


@dataclass(frozen=True)
class AttentionSettings:
    """What does not change from call to call: `scale` None is 1/sqrt(head_dim); `kernel` see `choose`."""

    scale: float | None = None
    dropout: float = 0.0
    kernel: Kernel = "auto"


@dataclass(frozen=True)
class AttentionInputs:
    """One attention: h query heads share n key heads in order."""

    query: Float[Array, "b l h k"]
    key: Float[Array, "b m n k"]
    value: Float[Array, "b m n k"]
    view: AttentionContext
    settings: AttentionSettings
    dropout_key: PRNGKeyArray | None = None

    @property
    def scaled(self) -> Float[Array, "b l h k"]:
        """The query times `scale`."""
        scale = self.settings.scale
        return self.query * (self.query.shape[-1] ** -0.5 if scale is None else scale)

    def of_heads(self, start: int, count: int) -> "AttentionInputs":
        """The same for some of the heads."""
        h, n = self.query.shape[2], self.key.shape[2]
        shared = slice(start * n // h, max((start + count) * n // h, start * n // h + 1))
        bias, key = self.view.bias, self.dropout_key
        some = None if bias is None else lambda q, k: bias(q, k)[start : start + count]
        return replace(
            self,
            query=self.query[:, :, start : start + count],
            key=self.key[:, :, shared],
            value=self.value[:, :, shared],
            view=replace(self.view, bias=some, offset_bias=None),
            dropout_key=None if key is None else jax.random.fold_in(key, start),
        )


PartialAttention = tuple[Float[Array, "b l h k"], Float[Array, "b l h"]]
"""What a query takes from its keys, and the logarithm of the sum of its exponentiated scores."""


def attention_mask(allowed: Allowed, view: AttentionContext) -> Bool[Array, "b l m"]:
    """Which keys each query may see, of those that an attention kind allows."""
    queries, keys = view.queries, view.keys
    query, key = queries.index[:, None], keys.index[None, :]
    if queries.at is not None and keys.at is not None:
        seen = allowed(queries.at[:, :, None], keys.at[:, None, :])
    else:
        seen = allowed(query, key)[None]
    if view.causal:
        past = (query >= key)[None]
        seen = seen & (past if keys.prefix is None else past | keys.prefix[:, None, :])
    own, other = queries.segment_ids[:, :, None], keys.segment_ids[:, None, :]
    return seen & (own == other) & (other > 0)
