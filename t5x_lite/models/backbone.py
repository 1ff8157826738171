"""Backbone: embedding and stack, from token vectors to states; a model without its token table and outputs."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from t5x_lite.models.attention import kernels
from t5x_lite.models.attention.cache import KVCache
from t5x_lite.models.attention.context import QueryStream, TokenPositions
from t5x_lite.models.block import EncoderOutput
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.gather_positions import gather_positions
from t5x_lite.models.layers import Embed, Linear, Norm, dropout
from t5x_lite.models.positions.module import Positions
from t5x_lite.models.reorder import reorder_shared_rows
from t5x_lite.models.stack import LayerCache, Stack


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecoderCache:
    """The cache of a decoder: what its layers keep of the tokens so far.

    Attributes:
        layers: keys and values, or the state of another mixer, of every layer of the pattern, with an axis over
            repeats.
        segment_ids: 1 for the tokens so far, 0 for padding and for free positions.
        index: number of positions in use.
        encoder_output: positions of the encoder's states, in an encoder_decoder.
        cross_kv: keys and values of those states of every layer.
    """

    layers: list[LayerCache]
    segment_ids: Int[Array, "b m"]
    index: Int[Array, ""]
    encoder_output: EncoderOutput | None = None
    cross_kv: list[KVCache] | None = None


@dataclass(frozen=True)
class PredictionOrder:
    """The order in which some tokens of each row are predicted, each from tokens of a lower rank.

    Attributes:
        vectors: vectors that replace the token vectors of the predicted tokens.
        predicted: their indices in the row.
        rank: number of each token of the row in the order; every token attends to those of a rank below zero.
    """

    vectors: Float[Array, "b p w"]
    predicted: Int[Array, "b p"]
    rank: Int[Array, "b l"]

    def query_stream(self) -> QueryStream:
        """Return the predicted tokens as the layers attend from them."""
        count = self.predicted.shape[1]
        rows = jnp.arange(len(self.rank))[:, None]
        # Unused entries are at place 0; the first state for a place, a used one if there is any, is taken.
        slots = jnp.full(self.rank.shape, count - 1).at[rows, self.predicted].min(jnp.arange(count))
        return QueryStream(self.predicted, slots)


class Embedding(nnx.Module):
    """Token vectors with positions and token types added, normalised where the config says so."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.dropout = config.dropout
        self.dropout_axis = 1 if config.variational_dropout else None
        self.scale = 1.0
        if config.scale_embedding:
            self.scale = config.embed**0.5
        if config.bfloat16_embedding_scale:
            self.scale = float(np.asarray(self.scale, jnp.bfloat16))
        self.positions = Positions(config, "embedding", rngs)
        if config.token_types:
            self.types: Embed | None = Embed(config, config.token_types, config.summed_width, axis="types", rngs=rngs)
        else:
            self.types = None
        if config.embedding_norm:
            self.norm: Norm | None = Norm(config.norm, ("embed", config.summed_width))
        else:
            self.norm = None

    def __call__(
        self,
        x: Float[Array, "b l d"],
        positions: Int[Array, "b l"],
        token_types: Int[Array, "b l"] | None,
        dropout_key: PRNGKeyArray | None,
    ) -> Float[Array, "b l d"]:
        x = self.positions.encode(x * self.scale, positions)
        if self.types is not None:
            if token_types is None:
                token_types = jnp.zeros_like(positions)
            x = x + self.types(token_types)
        if self.norm is not None:
            x = self.norm(x)
        return dropout(x, self.dropout, dropout_key, shared_axis=self.dropout_axis)


class Backbone(nnx.Module):
    """Embedding and stack.

    With `shared_with`, the embedding is that of another backbone; with `shares_stack`, so is all of its stack but
    cross-attention.
    """

    def __init__(
        self,
        config: ModelConfig,
        layers: int,
        *,
        causal: bool,
        has_cross: bool = False,
        shared_with: "Backbone | None" = None,
        shares_stack: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.embedding: Embedding
        if shared_with is None:
            self.embedding = Embedding(config, rngs=rngs)
        else:
            self.embedding = shared_with.embedding
        self.copies = config.token_copies
        self.projects_tokens = config.embedding_projection == "tokens"
        if config.embedding * config.token_copies != config.embed:
            narrow = ("embed", config.embedding * config.token_copies)
            bias = config.bias and not self.projects_tokens
            self.project: Linear | None = Linear(config, [narrow], [("embed_out", config.embed)], bias=bias, rngs=rngs)
        else:
            self.project = None
        stack = None
        if shared_with is not None and shares_stack:
            stack = shared_with.stack
        self.stack: Stack = Stack(config, layers, causal=causal, has_cross=has_cross, shared_with=stack, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b l w"],
        positions: Int[Array, "b l"] | None,
        segment_ids: Int[Array, "b l"] | None,
        *,
        token_types: Int[Array, "b l"] | None = None,
        prefix: Bool[Array, "b l"] | None = None,
        encoder_output: EncoderOutput | None = None,
        prediction_order: PredictionOrder | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "b l d"], TokenPositions]:
        """Return the states of the last layer, and their positions.

        Args:
            x: token vectors, of the width of `model.embedding`.
            positions: position of each token in its document; None: 0, 1, 2, …
            segment_ids: document of each token, 0 for padding; None: every row is one document.
            token_types: kind of each token; None is 0.
            prefix: keys that earlier queries attend to too.
            encoder_output: what cross-attention attends to.
            prediction_order: tokens that are predicted in some order; their states follow those of the row.
            key: turns dropout on.
        """
        embedding_key = stack_key = None
        if key is not None:
            embedding_key, stack_key = jax.random.split(key)
        rows = x.shape[:2]
        order = kernels.row_order(self.stack.config, x.shape[1], causal=self.stack.causal)
        if positions is None:
            positions = jnp.broadcast_to(np.arange(x.shape[1]), rows)
        single_segment = segment_ids is None
        if segment_ids is None:
            segment_ids = jnp.ones(rows, jnp.int32)
        if prefix is not None:
            prefix = prefix[:, order]
        x = reorder_shared_rows(self._embed(x, positions, token_types, embedding_key), order)
        places = TokenPositions(order, segment_ids[:, order], prefix, single_segment=single_segment, types=token_types)
        if prediction_order is not None:
            places = replace(places, rank=prediction_order.rank)
        context = self.stack.attention_context(places, places, positions[:, order], self_attention=True)
        if prediction_order is not None:
            predicted = self._embed_predicted(prediction_order, positions, token_types, embedding_key)
            x = jnp.concatenate([x, predicted], axis=1)
            context = replace(context, query_stream=prediction_order.query_stream())
        x, _ = self.stack(x, context, encoder_output, key=stack_key)
        return reorder_shared_rows(x, np.argsort(order)), places

    def decode_step(
        self,
        x: Float[Array, "b l d"],
        segment_ids: Int[Array, "b l"],
        cache: DecoderCache,
        *,
        is_prefix: bool = False,
    ) -> tuple[Float[Array, "b l d"], DecoderCache]:
        """Return the states of tokens that follow those of the cache, and the extended cache.

        Rows of unequal length are padded on the left (segment 0), so that all end together; the position of a token is
        the number of tokens before it, padding excluded. With `is_prefix` the tokens attend to each other both ways.
        """
        index = cache.index + jnp.arange(x.shape[1])
        all_segments = jax.lax.dynamic_update_slice_in_dim(cache.segment_ids, segment_ids, cache.index, axis=1)
        tokens_before = jnp.sum(cache.segment_ids > 0, axis=1, keepdims=True)
        positions = jnp.maximum(tokens_before + jnp.cumsum(segment_ids > 0, axis=1) - 1, 0)
        key_positions = jnp.maximum(jnp.cumsum(all_segments > 0, axis=1) - 1, 0)
        prefix = None
        if is_prefix:
            prefix = all_segments > 0
        queries = TokenPositions(index, segment_ids, unpadded_index=positions, spacing=1)
        keys = TokenPositions(np.arange(all_segments.shape[1]), all_segments, prefix, key_positions)
        context = self.stack.attention_context(queries, keys, positions, self_attention=False)
        x = self._embed(x, positions, None, None)
        x, layers = self.stack(x, context, cache.encoder_output, cache.layers, cache.cross_kv)
        assert layers is not None
        new_index = cache.index + x.shape[1]
        return x, replace(cache, layers=layers, segment_ids=all_segments, index=new_index)

    def _embed(
        self,
        x: Float[Array, "b l d"],
        positions: Int[Array, "b l"],
        token_types: Int[Array, "b l"] | None,
        dropout_key: PRNGKeyArray | None,
    ) -> Float[Array, "b l e"]:
        if self.projects_tokens and self.project is not None:
            return self.embedding(self.project(x), positions, token_types, dropout_key)
        x = self.embedding(x, positions, token_types, dropout_key)
        if self.copies > 1:
            x = jnp.tile(x, self.copies)
        if self.project is not None:
            x = self.project(x)
        return x

    def _embed_predicted(
        self,
        order: PredictionOrder,
        positions: Int[Array, "b l"],
        token_types: Int[Array, "b l"] | None,
        dropout_key: PRNGKeyArray | None,
    ) -> Float[Array, "b p e"]:
        """Return the first states of the predicted tokens, which encode positions and types, not the tokens."""
        if dropout_key is not None:
            dropout_key = jax.random.fold_in(dropout_key, 1)
        if token_types is not None:
            token_types = gather_positions(token_types, order.predicted)
        predicted_positions = gather_positions(positions, order.predicted)
        return self._embed(order.vectors, predicted_positions, token_types, dropout_key)

    def empty_cache(self, batch: int, length: int) -> DecoderCache:
        """Return a cache with room for `length` tokens in each of `batch` rows."""
        return DecoderCache(
            layers=self.stack.empty_cache(batch, length),
            segment_ids=jnp.zeros((batch, length), jnp.int32),
            index=jnp.int32(0),
        )
