"""The inputs of attention: queries, keys and values, their positions, and which keys a query may attend to."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from t5x_lite.models.attention.kinds.shapes import AllowedPairs

if TYPE_CHECKING:
    from t5x_lite.models.positions.module import Positions

MASK_VALUE = float(jnp.finfo(jnp.float32).min)
"""Score of a masked key; finite, so that a row without any visible key does not become NaN."""

KernelName = Literal["auto", "xla", "cudnn", "splash", "flash"]
OffsetBias = Callable[[Int[Array, "..."]], Float[Array, "h ..."]]
"""A function from offsets, key minus query, to the bias of every head."""
Rotation = Callable[[Float[Array, "b l h k"], Int[Array, "b l"] | None], Float[Array, "b l h k"]]
"""A function that rotates queries or keys by their positions."""


class ArraysByRow(TypedDict):
    """The arrays `[b, l]` of `TokenPositions`, by which parts of the rows are selected."""

    segment_ids: Int[Array, "b l"]
    prefix: Bool[Array, "b l"] | None
    unpadded_index: Int[Array, "b l"] | None
    rank: Int[Array, "b l"] | None
    types: Int[Array, "b l"] | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenPositions:
    """Positions of the tokens on one side of attention.

    Attributes:
        index: position of each token in its row, `[l]`; causality compares these. It is a NumPy array, known while
            tracing, except in decoding.
        segment_ids: the document of each token, `[b, l]`. Attention stays inside a document; 0 is padding.
        prefix: keys that earlier queries of their document may attend to, `[b, l]`; None where there are none.
        unpadded_index: position without the padding to the left, `[b, l]`, which attention kinds compare where rows of
            unequal length begin at different indices; None where all begin at 0.
        single_segment: every row is known to hold one document and no padding.
        spacing: distance of each index from the one before it, where it is known though `index` is not.
        rank: place of each token in an order of factorisation, `[b, l]`; a query attends to no key of a higher rank.
            None: there is no such order.
        types: kind of each token, `[b, l]`, for position encodings that compare those of query and key.
    """

    index: Int[Array, "l"] | Int[np.ndarray, "l"]
    segment_ids: Int[Array, "b l"]
    prefix: Bool[Array, "b l"] | None = None
    unpadded_index: Int[Array, "b l"] | None = None
    single_segment: bool = field(default=False, metadata={"static": True})
    spacing: int | None = field(default=None, metadata={"static": True})
    rank: Int[Array, "b l"] | None = None
    types: Int[Array, "b l"] | None = None

    @property
    def by_row(self) -> ArraysByRow:
        """Return the arrays `[b, l]` by name."""
        return ArraysByRow(
            segment_ids=self.segment_ids,
            prefix=self.prefix,
            unpadded_index=self.unpadded_index,
            rank=self.rank,
            types=self.types,
        )

    @property
    def in_order(self) -> bool:
        """The tokens are known to be at 0, 1, 2 and so on."""
        if isinstance(self.index, jax.core.Tracer):
            return False
        return np.array_equal(self.index, np.arange(len(self.index)))

    @property
    def smallest_index(self) -> Int[Array, ""] | np.integer:
        """Return the smallest index; of equal steps the first, as what fills the last chunk of a row is at 0."""
        if self.spacing is not None:
            return self.index[0]
        return self.index.min()

    @property
    def distances(self) -> Int[np.ndarray, "l"]:
        """Return the distance of each token from the smallest index.

        Raises:
            ValueError: it is not known while tracing.
        """
        if self.spacing is not None:
            return self.spacing * np.arange(len(self.index))
        if isinstance(self.index, jax.Array):
            raise ValueError("the distances between these tokens are not known while tracing")
        return self.index - self.index.min()

    def traced_spacing(self) -> int | None:
        """Return the distance of neighbouring tokens if all are equal, for a copy whose index is traced."""
        if self.spacing is not None or isinstance(self.index, jax.Array) or len(self.index) < 2:
            return self.spacing
        steps = np.unique(np.diff(self.index))
        if len(steps) > 1 or steps[0] < 1:
            return None
        return int(steps[0])

    def select(self, places: slice | np.ndarray) -> "TokenPositions":
        """Return the positions of some tokens of every row."""
        spacing = self.spacing
        if not isinstance(places, slice):
            spacing = None
        by_row: ArraysByRow = jax.tree.map(lambda array: array[:, places], self.by_row)
        return TokenPositions(self.index[places], **by_row, spacing=spacing)


@dataclass(frozen=True)
class ContentPairs:
    """Some of the queries and keys of one layer, of some of its heads.

    Attributes:
        query: the queries.
        key: the keys; h query heads share n key heads in order.
        queries, keys: positions of both.
        heads: the heads that these are, of those of the layer.
    """

    query: Float[Array, "b l h k"]
    key: Float[Array, "b m n k"]
    queries: TokenPositions
    keys: TokenPositions
    heads: slice = field(default_factory=partial(slice, None))


class ContentBias(Protocol):
    """A function that returns what is added to the products of queries and keys before they are scaled, in float32."""

    def __call__(self, pairs: ContentPairs) -> Float[Array, "b h l m"]: ...


def _no_rotation(x: Float[Array, "b l h k"], positions: Int[Array, "b l"] | None) -> Float[Array, "b l h k"]:
    return x


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QueryStream:
    """The tokens of each row that two-stream attention predicts (XLNet: Yang et al. 2019, §2.3).

    Attributes:
        predicted: their positions in the row, `[b, p]`.
        slots: for each position of the row, the index of its state in the stream; arbitrary where it has none.
    """

    predicted: Int[Array, "b p"]
    slots: Int[Array, "b l"]


@dataclass(frozen=True)
class AttentionContext:
    """Values that the layers of one forward pass share: positions, causality, and position encodings.

    Attributes:
        queries, keys: positions of both sides.
        causal: a query attends to no later key.
        self_attention: queries and keys are the same tokens of the same rows.
        positions: positions that `rotate` uses, `[b, l]`.
        rotate: rotates queries and new keys.
        offset_bias: bias of the scores as a function of the offset; None for no bias.
        bias: the bias of all queries and keys, `[h, l, m]`, where it is computed once for all layers.
        content_bias: bias of the scores as a function of queries, keys and their positions; None for no such bias. It
            is computed for the pairs that are computed together, so that no kind of attention slices it.
        stack_positions: the parameters of the position encoding that all layers share, for `content_bias`.
        global_bias: bias of the scores of global tokens as a function of the offset in blocks.
        sinks: score of each head, beside those of the keys, that takes weight and adds nothing; None for no sinks.
        query_stream: the tokens that the last states of each row predict, in two-stream attention; None without them.
    """

    queries: TokenPositions
    keys: TokenPositions
    causal: bool
    self_attention: bool = False
    positions: Int[Array, "b l"] | None = None
    rotate: Rotation = _no_rotation
    offset_bias: OffsetBias | None = None
    bias: Float[Array, "h l m"] | None = None
    content_bias: ContentBias | None = None
    stack_positions: "Positions | None" = None
    global_bias: OffsetBias | None = None
    sinks: Float[Array, "h"] | None = None
    query_stream: "QueryStream | None" = None

    @property
    def strictly_causal(self) -> bool:
        """No query attends to a later key, not even to one of a prefix."""
        return self.causal and self.keys.prefix is None

    def select(self, queries: slice, keys: slice) -> "AttentionContext":
        """Return the context of some queries and some keys, which are no longer the same tokens."""
        bias = self.bias
        if bias is not None:
            bias = bias[:, queries, keys]
        return replace(
            self,
            queries=self.queries.select(queries),
            keys=self.keys.select(keys),
            bias=bias,
            self_attention=False,
        )

    def score_bias(self) -> Float[Array, "h l m"] | None:
        """Return the bias of the scores of all queries and keys."""
        if self.bias is not None or self.offset_bias is None:
            return self.bias
        return self.offset_bias(offsets(self.queries, self.keys))


def offsets(queries: TokenPositions, keys: TokenPositions) -> Int[Array, "l m"]:
    """Return the offset, key minus query, of every pair."""
    return jnp.asarray(keys.index)[None, :] - jnp.asarray(queries.index)[:, None]


@dataclass(frozen=True)
class BlockLimits:
    """Sizes at which attention by XLA is cut into parts.

    Attributes:
        min_block: narrower blocks are computed several at a time: smaller products are slower than the work they save.
        causal_steps: parts that a causal row is cut into at most.
        min_causal_step: queries of such a part at least.
        max_scores: scores of one head above which they are computed for some queries at a time (2048 * 2048).
        chunk_bytes: size of those scores over the batch and all heads.
        cached_bytes: size of the scores of blocks that are computed together.
    """

    min_block: int = 64
    causal_steps: int = 8
    min_causal_step: int = 64
    max_scores: int = 2**22
    chunk_bytes: int = 64 * 2**20
    cached_bytes: int = 16 * 2**20


@dataclass(frozen=True)
class AttentionSettings:
    """Settings of attention that do not change from call to call.

    Attributes:
        scale: factor on the scores; None is 1/sqrt(head_dim).
        dropout: share of the attention weights dropped in training.
        kernel: what computes attention; see `kernels.choose_kernel`.
        platform: the platform compiled for; None is that of the mesh.
        interpret: run Pallas kernels in the interpreter, on any platform.
        limits: see `BlockLimits`.
        softcap: bound of the scores, which become softcap · tanh(scores / softcap); None: they are as they are.
    """

    scale: float | None = None
    dropout: float = 0.0
    kernel: KernelName = "auto"
    platform: str | None = None
    interpret: bool = False
    limits: BlockLimits = BlockLimits()
    softcap: float | None = None


@dataclass(frozen=True)
class AttentionInputs:
    """One call of attention. h query heads share n key heads in order. A dropout key turns dropout on."""

    query: Float[Array, "b l h k"]
    key: Float[Array, "b m n k"]
    value: Float[Array, "b m n j"]
    context: AttentionContext
    settings: AttentionSettings
    dropout_key: PRNGKeyArray | None = None

    @property
    def scale(self) -> float:
        """The factor on the scores."""
        if self.settings.scale is None:
            return self.query.shape[-1] ** -0.5
        return self.settings.scale

    @property
    def has_dropout(self) -> bool:
        """Some attention weights are dropped."""
        return self.dropout_key is not None and self.settings.dropout > 0

    def select_heads(self, start: int, count: int) -> "AttentionInputs":
        """Return the inputs of `count` query heads from `start`, with the key heads that they use."""
        query_heads = self.query.shape[2]
        key_heads = self.key.shape[2]
        first_key_head = start * key_heads // query_heads
        last_key_head = max((start + count) * key_heads // query_heads, first_key_head + 1)
        used = slice(first_key_head, last_key_head)
        heads = slice(start, start + count)
        context = self.context
        if context.bias is not None:
            context = replace(context, bias=context.bias[heads])
        if context.sinks is not None:
            context = replace(context, sinks=context.sinks[heads])
        if context.offset_bias is not None:
            context = replace(context, offset_bias=_bias_of_heads(context.offset_bias, heads))
        if context.content_bias is not None:
            context = replace(context, content_bias=partial(_content_bias_of_heads, context.content_bias, heads))
        dropout_key = self.dropout_key
        if dropout_key is not None:
            dropout_key = jax.random.fold_in(dropout_key, start)
        return replace(
            self,
            query=self.query[:, :, heads],
            key=self.key[:, :, used],
            value=self.value[:, :, used],
            context=context,
            dropout_key=dropout_key,
        )


def _bias_of_heads(offset_bias: OffsetBias, heads: slice) -> OffsetBias:
    def bias(offset: Int[Array, "..."]) -> Float[Array, "h ..."]:
        return offset_bias(offset)[heads]

    return bias


def _content_bias_of_heads(content_bias: ContentBias, heads: slice, pairs: ContentPairs) -> Float[Array, "b h l m"]:
    return content_bias(replace(pairs, heads=heads))


PartialAttention = tuple[Float[Array, "b l h j"], Float[Array, "b l h"]]
"""Attention output over some of the keys, and the log-sum-exp of their scores."""


def attention_mask(allowed: AllowedPairs, context: AttentionContext) -> Bool[Array, "b l m"]:
    """Return which keys each query attends to, of those that an attention kind allows."""
    queries = context.queries
    keys = context.keys
    query_index = queries.index[:, None]
    key_index = keys.index[None, :]
    if queries.unpadded_index is not None and keys.unpadded_index is not None:
        mask = allowed(queries.unpadded_index[:, :, None], keys.unpadded_index[:, None, :])
    else:
        mask = allowed(query_index, key_index)[None]
    if context.causal:
        visible = (query_index >= key_index)[None]
        if keys.prefix is not None:
            visible = visible | keys.prefix[:, None, :]
        mask = mask & visible
    if queries.rank is not None and keys.rank is not None:
        mask = mask & (queries.rank[:, :, None] >= keys.rank[:, None, :])
    query_segments = queries.segment_ids[:, :, None]
    key_segments = keys.segment_ids[:, None, :]
    return mask & (query_segments == key_segments) & (key_segments > 0)
