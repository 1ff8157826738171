"""The Transformer as a whole: Decoder, Encoder, EncoderDecoder."""

from collections.abc import Callable
from dataclasses import replace
from typing import Self, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from t5x_lite.models.backbone import Backbone, DecoderCache, PredictionOrder
from t5x_lite.models.block import EncoderOutput
from t5x_lite.models.character_embedding import CharacterEmbedding
from t5x_lite.models.config import ModelConfig, Output
from t5x_lite.models.layers import Embed, Weight, weight
from t5x_lite.models.outputs import DetectionOutput, SentenceOutput, SpanOutput, TaskOutput, TokenOutput

Created = TypeVar("Created", bound=nnx.Module)
"""The class of an output."""
EMBEDDING_STREAM = 2**20
"""Number that is folded into a key for the embedding; layers split the key instead."""


class TextModel(nnx.Module):
    """A model that reads a text by one of its stacks, its `backbone`."""

    @property
    def text_model(self) -> Self:
        """The model that reads a text: this one."""
        return self


class Decoder(TextModel):
    """A causal language model: GPT and its descendants, by the components of its config."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.prefix_lm = config.prefix_lm
        self.tokens = token_embedding(config, rngs)
        self.decoder = Backbone(config, config.layers, causal=True, rngs=rngs)
        self.output = TokenOutput(config, rngs=rngs)
        if config.head is not None:
            self.head: TaskOutput | None = TaskOutput(config, config.head, rngs=rngs)
        else:
            self.head = None

    def __call__(
        self,
        tokens: Int[Array, "b l"],
        *,
        positions: Int[Array, "b l"] | None = None,
        segment_ids: Int[Array, "b l"] | None = None,
        prefix: Int[Array, "b l"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b l d"]:
        """Return the states of the last layer.

        Args:
            tokens: token ids.
            positions: position of each token in its document; None: 0, 1, 2, …
            segment_ids: document of each token, 0 for padding; None: every row is one document.
            prefix: 1 for inputs, which a prefix language model lets attend to each other both ways.
            key: turns dropout on.
        """
        visible_prefix = None
        if self.prefix_lm and prefix is not None:
            visible_prefix = prefix > 0
        x = self.tokens(tokens, embedding_key(key))
        states, _ = self.decoder(x, positions, segment_ids, prefix=visible_prefix, key=key)
        return states

    @property
    def backbone(self) -> Backbone:
        """The stack that reads a text, with its embedding."""
        return self.decoder

    def prefill(
        self, tokens: Int[Array, "b l"], segment_ids: Int[Array, "b l"], new_tokens: int
    ) -> tuple[Float[Array, "b 1 d"], DecoderCache]:
        """Return the state of each prompt's last token, and a cache with room for `new_tokens` more."""
        cache = self.decoder.empty_cache(tokens.shape[0], tokens.shape[1] + new_tokens)
        x, cache = self.decoder.decode_step(self.tokens(tokens), segment_ids, cache, is_prefix=self.prefix_lm)
        return x[:, -1:], cache

    def decode_step(
        self, tokens: Int[Array, "b l"], segment_ids: Int[Array, "b l"], cache: DecoderCache
    ) -> tuple[Float[Array, "b l d"], DecoderCache]:
        """Return the states of tokens that follow, and the extended cache; see `Backbone.decode_step`."""
        return self.decoder.decode_step(self.tokens(tokens), segment_ids, cache)

    def logits(self, states: Float[Array, "b l d"]) -> Float[Array, "b l v"]:
        """Return the scores of every token of the vocabulary, in float32."""
        return self.output(states, self.tokens)


class Encoder(TextModel):
    """BERT and its descendants: every token attends to all of its document; `model.outputs` says what is predicted.

    With `shared_with`, token table and embedding are those of another encoder.
    """

    def __init__(self, config: ModelConfig, *, shared_with: "Encoder | None" = None, rngs: nnx.Rngs) -> None:
        other = None
        self.tokens: Embed | CharacterEmbedding
        if shared_with is None:
            self.tokens = token_embedding(config, rngs)
        else:
            self.tokens = shared_with.tokens
            other = shared_with.encoder
        self.encoder: Backbone = Backbone(config, config.layers, causal=False, shared_with=other, rngs=rngs)
        self.output: TokenOutput | None = _create_output(TokenOutput, "tokens", config, rngs)
        self.neighbours: TokenOutput | None = _create_output(TokenOutput, "neighbours", config, rngs)
        self.sentence: SentenceOutput | None = _create_output(SentenceOutput, "sentence", config, rngs)
        self.detection: DetectionOutput | None = _create_output(DetectionOutput, "detection", config, rngs)
        self.span: SpanOutput | None = _create_output(SpanOutput, "span", config, rngs)
        if config.head is not None:
            self.head: TaskOutput | None = TaskOutput(config, config.head, rngs=rngs)
        else:
            self.head = None
        self.query_vector = _query_vector(config, rngs)

    def __call__(
        self,
        tokens: Int[Array, "b l"],
        *,
        positions: Int[Array, "b l"] | None = None,
        segment_ids: Int[Array, "b l"] | None = None,
        token_types: Int[Array, "b l"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b l d"]:
        """Return the states of the last layer; see `Decoder.__call__`. `token_types` of None are 0."""
        x = self.tokens(tokens, embedding_key(key))
        states, _ = self.encoder(x, positions, segment_ids, token_types=token_types, key=key)
        return states

    @property
    def backbone(self) -> Backbone:
        """The stack that reads a text, with its embedding."""
        return self.encoder

    def predict_in_order(
        self,
        tokens: Int[Array, "b l"],
        predicted: Int[Array, "b p"],
        rank: Int[Array, "b l"],
        *,
        segment_ids: Int[Array, "b l"] | None = None,
        token_types: Int[Array, "b l"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b p d"]:
        """Return a state for each predicted token, computed from tokens of a lower rank (Yang et al. 2019, §2.3).

        Args:
            tokens: token ids.
            predicted: places of the predicted tokens in the row.
            rank: place of each token in the order of factorisation.
            segment_ids: document of each token, 0 for padding; None: every row is one document.
            token_types: kind of each token; None is 0.
            key: turns dropout on.
        """
        assert self.query_vector is not None
        x = self.tokens(tokens, embedding_key(key))
        vectors = jnp.broadcast_to(self.query_vector[...].astype(x.dtype), (*predicted.shape, x.shape[-1]))
        order = PredictionOrder(vectors, predicted, rank)
        states, _ = self.encoder(x, None, segment_ids, token_types=token_types, prediction_order=order, key=key)
        return states[:, tokens.shape[1] :]

    def logits(self, states: Float[Array, "b l d"]) -> Float[Array, "b l v"]:
        """Return the scores of every token of the vocabulary, in float32."""
        assert self.output is not None
        return self.output(states, self.tokens)

    def neighbour_logits(self, states: Float[Array, "b l d"]) -> Float[Array, "b l v"]:
        """Return the scores of every token from the states of one direction, in float32."""
        assert self.neighbours is not None
        return self.neighbours.scores(states, self.tokens)

    def span_logits(self, states: Float[Array, "b p d"]) -> Float[Array, "b p v"]:
        """Return the scores of every token from what `span` predicts from the borders, in float32."""
        assert self.output is not None
        return self.output.scores(states, self.tokens)


class EncoderDecoder(TextModel):
    """T5 and the original Transformer: a decoder attends to an encoder's states.

    Attributes:
        decoder_tokens: the decoder's token table; None where it has the encoder's.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.start_token = config.start_token
        self.tokens = token_embedding(config, rngs)
        if config.decoder_embedding == "separate":
            self.decoder_tokens: Embed | CharacterEmbedding | None = token_embedding(config, rngs)
        else:
            self.decoder_tokens = None
        self.encoder = Backbone(config, config.layers, causal=False, rngs=rngs)
        other = None
        if config.shared_stacks:
            other = self.encoder
        self.decoder = Backbone(
            config.decoder_model,
            config.decoder_layers,
            causal=True,
            has_cross=True,
            shared_with=other,
            shares_stack=config.shared_stacks,
            rngs=rngs,
        )
        self.output = TokenOutput(config, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "b l"],
        decoder_tokens: Int[Array, "b t"],
        *,
        positions: Int[Array, "b l"] | None = None,
        segment_ids: Int[Array, "b l"] | None = None,
        decoder_positions: Int[Array, "b t"] | None = None,
        decoder_segment_ids: Int[Array, "b t"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b t d"]:
        """Return the decoder's states. A decoder token attends to the encoder tokens of its segment."""
        encoder_key = decoder_key = None
        if key is not None:
            encoder_key, decoder_key = jax.random.split(key)
        x = self.tokens(tokens, embedding_key(encoder_key))
        states, token_positions = self.encoder(x, positions, segment_ids, key=encoder_key)
        encoder_output = EncoderOutput(token_positions, states)
        x = self.target_table(decoder_tokens, embedding_key(decoder_key))
        x, _ = self.decoder(x, decoder_positions, decoder_segment_ids, encoder_output=encoder_output, key=decoder_key)
        return x

    @property
    def backbone(self) -> Backbone:
        """The stack that reads a text, with its embedding."""
        return self.encoder

    def prefill(
        self, tokens: Int[Array, "b l"], segment_ids: Int[Array, "b l"], new_tokens: int
    ) -> tuple[Float[Array, "b 1 d"], DecoderCache]:
        """Encode the prompts. Return the decoder's first state, and a cache with room for `new_tokens` more tokens."""
        positions = jnp.maximum(jnp.cumsum(segment_ids > 0, axis=1) - 1, 0)
        states, token_positions = self.encoder(self.tokens(tokens), positions, segment_ids)
        cache = replace(
            self.decoder.empty_cache(tokens.shape[0], 1 + new_tokens),
            encoder_output=EncoderOutput(token_positions),
            cross_kv=self.decoder.stack.encoder_keys_values(EncoderOutput(token_positions, states)),
        )
        start = jnp.full((tokens.shape[0], 1), self.start_token, tokens.dtype)
        return self.decode_step(start, jnp.ones_like(start), cache)

    def decode_step(
        self, tokens: Int[Array, "b l"], segment_ids: Int[Array, "b l"], cache: DecoderCache
    ) -> tuple[Float[Array, "b l d"], DecoderCache]:
        """Return the states of decoder tokens that follow, and the extended cache; see `Backbone.decode_step`."""
        return self.decoder.decode_step(self.target_table(tokens), segment_ids, cache)

    def logits(self, states: Float[Array, "b l d"]) -> Float[Array, "b l v"]:
        """Return the scores of every token of the vocabulary, in float32."""
        return self.output(states, self.target_table)

    @property
    def target_table(self) -> Embed | CharacterEmbedding:
        """The token table of the decoder and of a tied output."""
        return self.tokens if self.decoder_tokens is None else self.decoder_tokens


def _create_output(create: Callable[..., Created], name: Output, config: ModelConfig, rngs: nnx.Rngs) -> Created | None:
    """Return an output if it is one of `model.outputs`."""
    if name in config.outputs:
        return create(config, rngs=rngs)
    return None


def embedding_key(key: PRNGKeyArray | None) -> PRNGKeyArray | None:
    """Return the key of word dropout. It is folded in, not split off, so that the keys of the layers do not change."""
    if key is None:
        return None
    return jax.random.fold_in(key, EMBEDDING_STREAM)


def _query_vector(config: ModelConfig, rngs: nnx.Rngs) -> Weight | None:
    """Return the vector in the place of predicted tokens; None in a model without a query stream."""
    if not config.query_stream:
        return None
    shape = (config.embedding,)
    return weight(config.init.embedding_std() * jax.random.normal(rngs.params(), shape, jnp.float32), ("embed",))


def token_embedding(config: ModelConfig, rngs: nnx.Rngs) -> Embed | CharacterEmbedding:
    """Return the token table of a model, or what computes token vectors from characters.

    Raises:
        ValueError: the size of the vocabulary is not known yet.
    """
    if config.vocab is None:
        raise ValueError("model.vocab must be known; `with_vocab` takes it from the tokenizer")
    if config.characters is not None:
        return CharacterEmbedding(config, config.characters, rngs=rngs)
    return Embed(config, config.vocab, config.embedding, rngs=rngs)
