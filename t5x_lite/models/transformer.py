"""The Transformer as a whole: Decoder, Encoder, EncoderDecoder, and ELECTRA's pair of encoders."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from t5x_lite.models import outputs, positions
from t5x_lite.models.adapters import Surgeon
from t5x_lite.models.attention import kernels
from t5x_lite.models.attention.context import TokenPositions
from t5x_lite.models.attention.layer import KVCache
from t5x_lite.models.config import START, ModelConfig
from t5x_lite.models.layers import Axes, Embed, Linear, Norm, Weight, dropout
from t5x_lite.models.sharding import constrain
from t5x_lite.models.stack import EncoderOutput, Stack

Tokens: TypeAlias = Int[Array, "b l"]
States: TypeAlias = Float[Array, "b l d"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """What a decoder remembers of the tokens so far: keys and values, their segments, and how many there are.

    After an encoder, `memory` says where its states stand and `remembered` holds each layer's keys and values of them.
    """

    layers: list[KVCache]
    segment_ids: Int[Array, "b m"]
    index: Int[Array, ""]
    memory: EncoderOutput | None = None
    remembered: list[KVCache] | None = None


class Embedding(nnx.Module):
    """Token vectors with positions and token types added, normed where the config says so."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        width = config.width_of_embedding
        self.dropout = config.dropout
        self.scale = config.embed**0.5 if config.scale_embedding else 1.0
        self.positions = positions.added(config, rngs)
        self.types = Embed(config, config.token_types, width, name="types", rngs=rngs) if config.token_types else None
        self.norm = Norm(config.norm, ("embed", width)) if config.embedding_norm else None

    def __call__(self, x: States, at: Tokens, token_types: Tokens | None, key: PRNGKeyArray | None) -> States:
        x = self.positions(x * self.scale, at)
        if self.types is not None:
            x = x + self.types(jnp.zeros_like(at) if token_types is None else token_types)
        return dropout(x if self.norm is None else self.norm(x), self.dropout, key)


class Side(nnx.Module):
    """Embedding and stack, from token vectors to states: a whole model but for its token table and outputs.

    With `like`, the embedding is that of another side; with `shared`, so is all of its stack but cross-attention.
    """

    def __init__(
        self,
        config: ModelConfig,
        layers: int,
        *,
        causal: bool,
        cross: bool = False,
        like: "Side | None" = None,
        shared: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        narrow = ("embed", config.width_of_embedding)
        projected = config.width_of_embedding != config.embed
        self.embedding: Embedding = Embedding(config, rngs=rngs) if like is None else like.embedding
        self.project = Linear(config, [narrow], [("embed_out", config.embed)], rngs=rngs) if projected else None
        other = like.stack if like is not None and shared else None
        self.stack: Stack = Stack(config, layers, causal=causal, cross=cross, like=other, rngs=rngs)

    def __call__(
        self,
        x: States,
        at: Tokens | None,
        segment_ids: Tokens | None,
        *,
        token_types: Tokens | None = None,
        prefix: Bool[Array, "b l"] | None = None,
        memory: EncoderOutput | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[States, TokenPositions]:
        """States, and where they stand. Without positions `at` and segments a row is one document.

        Keys in `prefix` are seen by earlier queries too; `key` turns dropout on.
        """
        first, rest = (None, None) if key is None else jax.random.split(key)
        shape = x.shape[:2]
        index = kernels.row_order(self.stack.config, x.shape[1], causal=self.stack.causal)
        at = jnp.broadcast_to(np.arange(x.shape[1]), shape) if at is None else at
        segments = jnp.ones(shape, jnp.int32) if segment_ids is None else segment_ids
        x = reordered(self._embedded(x, at, token_types, first), index)
        both_ways = None if prefix is None else prefix[:, index]
        places = TokenPositions(index, segments[:, index], both_ways, one_text=segment_ids is None)
        x = self.stack(x, self.stack.view(places, places, at[:, index]), memory, key=rest)[0]
        return reordered(x, np.argsort(index)), places

    def extend(self, x: States, segment_ids: Tokens, cache: Cache, *, prefix: bool = False) -> tuple[States, Cache]:
        """States of tokens that follow those of `cache`, and the longer cache.

        Rows of unequal length are padded on the left (segment 0), so that all end together; a token's position is the
        number of real tokens before it. With `prefix` the tokens see each other both ways.
        """
        index = cache.index + jnp.arange(x.shape[1])
        segments = jax.lax.dynamic_update_slice_in_dim(cache.segment_ids, segment_ids, cache.index, axis=1)
        before = jnp.sum(cache.segment_ids > 0, axis=1, keepdims=True)
        at = jnp.maximum(before + jnp.cumsum(segment_ids > 0, axis=1) - 1, 0)
        queries = TokenPositions(index, segment_ids, at=at)
        places = jnp.maximum(jnp.cumsum(segments > 0, axis=1) - 1, 0)
        keys = TokenPositions(jnp.arange(segments.shape[1]), segments, segments > 0 if prefix else None, places)
        view = self.stack.view(queries, keys, at)
        x = self._embedded(x, at, None, None)
        hidden, layers = self.stack(x, view, cache.memory, cache.layers, cache.remembered)
        assert layers is not None
        return hidden, Cache(layers, segments, cache.index + x.shape[1], cache.memory, cache.remembered)

    def _embedded(self, x: States, at: Tokens, types: Tokens | None, key: PRNGKeyArray | None) -> States:
        x = self.embedding(x, at, types, key)
        return x if self.project is None else self.project(x)

    def empty_cache(self, batch: int, length: int) -> Cache:
        """Room for `length` tokens in each of `batch` rows."""
        return Cache(self.stack.empty_cache(batch, length), jnp.zeros((batch, length), jnp.int32), jnp.int32(0))


def reordered(x: States, order: np.ndarray) -> States:
    """`x[:, order]`; of a row in parts over the mesh, each device permutes some channels of the whole."""
    if np.array_equal(order, np.arange(len(order))):
        return x
    return constrain(constrain(x, "batch", None, "length")[:, order], "batch", "residual_length", None)


class Decoder(nnx.Module):
    """A causal language model: GPT and its descendants, by the components of its config."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.prefix_lm = config.prefix_lm
        self.tokens = _table(config, rngs)
        self.decoder = Side(config, config.layers, causal=True, rngs=rngs)
        self.output = outputs.TokenOutput(config, rngs=rngs)
        self.head = None if config.head is None else outputs.TaskOutput(config, config.head, rngs=rngs)

    def __call__(
        self,
        tokens: Tokens,
        *,
        positions: Tokens | None = None,
        segment_ids: Tokens | None = None,
        prefix: Tokens | None = None,
        key: PRNGKeyArray | None = None,
    ) -> States:
        """The last layer's states. Without positions and segments a row is one document; `key` turns dropout on.

        `prefix` is 1 for inputs, which a prefix language model lets see each other both ways.
        """
        both_ways = prefix > 0 if self.prefix_lm and prefix is not None else None
        return self.decoder(self.tokens(tokens), positions, segment_ids, prefix=both_ways, key=key)[0]

    def begin(self, tokens: Tokens, segment_ids: Tokens, room: int) -> tuple[States, Cache]:
        """The state of each prompt's last token, and a cache with room for `room` tokens more."""
        cache = self.decoder.empty_cache(tokens.shape[0], tokens.shape[1] + room)
        hidden, cache = self.decoder.extend(self.tokens(tokens), segment_ids, cache, prefix=self.prefix_lm)
        return hidden[:, -1:], cache

    def extend(self, tokens: Tokens, segment_ids: Tokens, cache: Cache) -> tuple[States, Cache]:
        """States of `tokens` that follow those of `cache`, and the longer cache; see `Side.extend`."""
        return self.decoder.extend(self.tokens(tokens), segment_ids, cache)

    def logits(self, hidden: States) -> Float[Array, "b l v"]:
        """Scores of every token of the vocabulary, in float32."""
        return self.output(hidden, self.tokens)


class Encoder(nnx.Module):
    """BERT and its descendants: every token sees all of its segment; `model.outputs` says what is predicted.

    With `like`, token table and embedding are those of another encoder.
    """

    def __init__(self, config: ModelConfig, *, like: "Encoder | None" = None, rngs: nnx.Rngs) -> None:
        self.tokens: Embed = _table(config, rngs) if like is None else like.tokens
        other = None if like is None else like.encoder
        self.encoder: Side = Side(config, config.layers, causal=False, like=other, rngs=rngs)
        has = config.outputs
        self.output = outputs.TokenOutput(config, rngs=rngs) if "tokens" in has else None
        self.sentence = outputs.SentenceOutput(config, rngs=rngs) if "sentence" in has else None
        self.detection = outputs.DetectionOutput(config, rngs=rngs) if "detection" in has else None
        self.span = outputs.SpanOutput(config, rngs=rngs) if "span" in has else None
        self.head = None if config.head is None else outputs.TaskOutput(config, config.head, rngs=rngs)

    def __call__(
        self,
        tokens: Tokens,
        *,
        positions: Tokens | None = None,
        segment_ids: Tokens | None = None,
        token_types: Tokens | None = None,
        key: PRNGKeyArray | None = None,
    ) -> States:
        """The last layer's states; see `Decoder.__call__`. `token_types` default to 0."""
        return self.encoder(self.tokens(tokens), positions, segment_ids, token_types=token_types, key=key)[0]

    def logits(self, hidden: States) -> Float[Array, "b l v"]:
        """Scores of every token of the vocabulary, in float32."""
        assert self.output is not None
        return self.output(hidden, self.tokens)

    def span_logits(self, states: States) -> Float[Array, "b p v"]:
        """Scores of every token from what `span` makes of the borders, in float32."""
        assert self.output is not None
        return self.output.scores(states, self.tokens)


class EncoderDecoder(nnx.Module):
    """T5 and the original Transformer: an encoder's states are the memory of a decoder; both share the token table."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.tokens = _table(config, rngs)
        self.encoder = Side(config, config.layers, causal=False, rngs=rngs)
        shared = config.shared_stacks
        like = self.encoder if shared else None
        layers = config.layers_of_decoder
        self.decoder = Side(config, layers, causal=True, cross=True, like=like, shared=shared, rngs=rngs)
        self.output = outputs.TokenOutput(config, rngs=rngs)

    def __call__(
        self,
        tokens: Tokens,
        decoder_tokens: Tokens,
        *,
        positions: Tokens | None = None,
        segment_ids: Tokens | None = None,
        decoder_positions: Tokens | None = None,
        decoder_segment_ids: Tokens | None = None,
        key: PRNGKeyArray | None = None,
    ) -> States:
        """The decoder's states. Cross-attention joins equal segments of the two sides."""
        first, second = (None, None) if key is None else jax.random.split(key)
        states, places = self.encoder(self.tokens(tokens), positions, segment_ids, key=first)
        memory = EncoderOutput(places, states)
        x = self.tokens(decoder_tokens)
        return self.decoder(x, decoder_positions, decoder_segment_ids, memory=memory, key=second)[0]

    def begin(self, tokens: Tokens, segment_ids: Tokens, room: int) -> tuple[States, Cache]:
        """Read the prompts; the decoder's state after its first token, and a cache with room for `room` more."""
        at = jnp.maximum(jnp.cumsum(segment_ids > 0, axis=1) - 1, 0)
        states, places = self.encoder(self.tokens(tokens), at, segment_ids)
        empty = self.decoder.empty_cache(tokens.shape[0], 1 + room)
        remembered = self.decoder.stack.remember(EncoderOutput(places, states))
        cache = replace(empty, memory=EncoderOutput(places), remembered=remembered)
        start = jnp.full((tokens.shape[0], 1), START, tokens.dtype)
        return self.extend(start, jnp.ones_like(start), cache)

    def extend(self, tokens: Tokens, segment_ids: Tokens, cache: Cache) -> tuple[States, Cache]:
        """States of decoder tokens that follow those of `cache`, and the longer cache; see `Side.extend`."""
        return self.decoder.extend(self.tokens(tokens), segment_ids, cache)

    def logits(self, hidden: States) -> Float[Array, "b l v"]:
        """Scores of every token of the vocabulary, in float32."""
        return self.output(hidden, self.tokens)


class Electra(nnx.Module):
    """A small generator fills masks, a discriminator tells which tokens it has replaced (Clark et al. 2020).

    Both read the same token table and embedding.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.discriminator = Encoder(config, rngs=rngs)
        self.generator = Encoder(config.model_of_generator, like=self.discriminator, rngs=rngs)

    def replaced(
        self, tokens: Tokens, places: Tokens, weights: Float[Array, "b p"], states: States, key: PRNGKeyArray | None
    ) -> Tokens:
        """`tokens` with those at `places` (where `weights` are not 0) drawn from the generator's softmax.

        `states` are the generator's at `places`. No gradient passes. Without a key (evaluation) the draw is always the
        same.
        """
        scores = jax.lax.stop_gradient(self.generator.logits(states))
        drawn = jax.random.categorical(jax.random.key(0) if key is None else key, scores).astype(tokens.dtype)
        at = jnp.where(weights > 0, places, tokens.shape[1])
        return tokens.at[jnp.arange(tokens.shape[0])[:, None], at].set(drawn, mode="drop")


def _table(config: ModelConfig, rngs: nnx.Rngs) -> Embed:
    if config.vocab is None:
        raise ValueError("model.vocab must be known; `with_vocab` takes it from the tokenizer")
    return Embed(config, config.vocab, config.width_of_embedding, rngs=rngs)


FAMILIES: dict[str, Callable[..., nnx.Module]] = {
    "decoder": Decoder,
    "encoder": Encoder,
    "encoder_decoder": EncoderDecoder,
    "electra": Electra,
}


Surgery = Callable[[Surgeon], None]
"""What adaptation does to a fresh model."""


def _make(config: ModelConfig, key: Any, surgery: Surgery | None) -> nnx.Module:
    rngs = nnx.Rngs(params=key)
    model = FAMILIES[config.family](config, rngs=rngs)
    if surgery is not None:
        surgery(Surgeon(model, config, rngs))
    return model


@dataclass(frozen=True)
class ModelSpec:
    """A model without its weights: `params` is a nested dict of arrays, everything else is here.

    `axes` has the shape of `params`, an `Axes` for each array.
    """

    graph: Any
    axes: Any
    shapes: Any

    def model(self, params: Any) -> Any:
        """The module with these weights."""
        variables = jax.tree.map(lambda axes, value: Weight(value, axes=axes), self.axes, params)
        return nnx.merge(self.graph, nnx.State(variables))

    @property
    def parameters(self) -> int:
        """Number of trained values."""
        return round(self._count(lambda axes: 1))

    def of(self, axis: str) -> int:
        """Number of trained values of the arrays that have this logical axis."""
        return round(self._count(lambda axes: axis in axes.names))

    @property
    def active_parameters(self) -> int:
        """Number of those that one token passes: of experts, as many as it is sent to."""
        return round(self._count(lambda axes: axes.share))

    def _count(self, share: Callable[[Axes], float]) -> float:
        counts = jax.tree.map(lambda axes, leaf: share(axes) * math.prod(leaf.shape), self.axes, self.shapes)
        return sum(jax.tree.leaves(counts))


def model_spec(config: ModelConfig, surgery: Surgery | None = None) -> ModelSpec:
    """The structure and shapes of a model, without allocating anything."""
    graph, state = nnx.split(nnx.eval_shape(lambda: _make(config, 0, surgery)))
    is_weight = lambda leaf: isinstance(leaf, Weight)  # noqa: E731
    plain = nnx.to_pure_dict(state)
    axes = nnx.to_pure_dict(jax.tree.map(lambda w: w.axes, state, is_leaf=is_weight))
    return ModelSpec(graph, axes, plain)


def init_params(config: ModelConfig, key: PRNGKeyArray, surgery: Surgery | None = None) -> Any:
    """Fresh weights as a nested dict; call it under `jax.jit` with the shardings that they should have."""
    return nnx.to_pure_dict(nnx.state(_make(config, key, surgery)))
