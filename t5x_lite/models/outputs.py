"""Predictions from the states of a model: tokens, the relation of two sentences, replaced tokens, a span's tokens."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from t5x_lite.models.character_embedding import CharacterEmbedding
from t5x_lite.models.config import SPAN_POSITIONS, ModelConfig
from t5x_lite.models.gather_positions import gather_positions
from t5x_lite.models.head_config import HeadActivation, HeadConfig
from t5x_lite.models.layers import ACTIVATIONS, Embed, Linear, Norm, Weight, dropout, gelu, weight
from t5x_lite.models.mixers import StateMixer
from t5x_lite.models.mixers.module import MixerModule
from t5x_lite.models.vectors import MASKED_SCORE, normalize

SPAN_POSITION_WIDTH = 200
"""Width of the embedding of positions in a span (Joshi et al. 2020, code: pair_positional_embedding_size)."""

HEAD_ACTIVATIONS: dict[HeadActivation, Callable[[Array], Array]] = {"tanh": jnp.tanh, "gelu": gelu}
"""Elementwise functions of the dense layer before the scores of a task."""


def _state_at(states: Float[Array, "b l d"], position: Int[Array, "b"]) -> Float[Array, "b d"]:
    return gather_positions(states, position[:, None])[:, 0]


def _first_states(states: Float[Array, "b l d"], segment_ids: Int[Array, "b l"] | None) -> Float[Array, "b l d"]:
    """Return the state of the first token of each token's document."""
    if segment_ids is None:
        return jnp.broadcast_to(states[:, :1], states.shape)
    index = jnp.arange(segment_ids.shape[1])
    is_first = segment_ids != jnp.roll(segment_ids, 1, axis=1)
    first = jax.lax.cummax(jnp.where(is_first, index, 0), axis=1)
    # The gradients of all tokens of a document are summed in its first one: in float32.
    return gather_positions(states.astype(jnp.float32), first).astype(states.dtype)


def pool_first(states: Float[Array, "b l d"], included: Bool[Array, "b l"]) -> Float[Array, "b d"]:
    """Return the state of the first included token."""
    return _state_at(states, included.argmax(1))


def pool_last(states: Float[Array, "b l d"], included: Bool[Array, "b l"]) -> Float[Array, "b d"]:
    """Return the state of the last included token."""
    return _state_at(states, included.shape[1] - 1 - included[:, ::-1].argmax(1))


def is_text(tokens: Int[Array, "b l"], segment_ids: Int[Array, "b l"]) -> Bool[Array, "b l"]:
    """Return which positions hold tokens of the text: not padding, and not soft prompts, whose ids are negative."""
    return (segment_ids > 0) & (tokens >= 0)


def pool_mean(states: Float[Array, "b l d"], included: Bool[Array, "b l"]) -> Float[Array, "b d"]:
    """Return the mean of the included states."""
    return jnp.sum(states * included[..., None], axis=1) / jnp.maximum(included.sum(1, keepdims=True), 1)


def pool_max(states: Float[Array, "b l d"], included: Bool[Array, "b l"]) -> Float[Array, "b d"]:
    """Return the maximum of the included states."""
    return jnp.where(included[..., None], states, MASKED_SCORE).max(1)


def pool_concat(states: Float[Array, "b l d"], included: Bool[Array, "b l"]) -> Float[Array, "b 3*d"]:
    """Return the last state, the maximum and the mean side by side (Howard & Ruder 2018, §3.3)."""
    pools = [pool(states, included) for pool in (pool_last, pool_max, pool_mean)]
    return jnp.concatenate(pools, axis=-1)


POOLS: dict[str, Callable[[Float[Array, "b l d"], Bool[Array, "b l"]], Float[Array, "b _"]]] = {
    "first": pool_first,
    "last": pool_last,
    "mean": pool_mean,
    "max": pool_max,
    "concat": pool_concat,
}
"""Functions from the states of a text, and which of them are included, to one vector (Reimers & Gurevych 2019, §3)."""


class TokenOutput(nnx.Module):
    """Scores of every token of the vocabulary, in float32; a tied model uses its token table as the matrix."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        assert config.vocab is not None
        width = ("embed", config.embedding)
        self.activation = config.dense_feedforward.activation
        self.softcap = config.logit_softcap
        self.scale = 1 / config.width_multiplier
        if config.scale_output:
            self.scale = config.embed**-0.5 / config.width_multiplier
        if config.output_transform:
            self.transform: Linear | None = Linear(config, [("embed", config.embed)], [width], rngs=rngs)
            self.norm: Norm | None = Norm(config.norm, width)
        else:
            self.transform = None
            self.norm = None
        if config.embedding_projection == "tokens" and not config.output_transform:
            self.project: Linear | None = Linear(config, [("embed", config.embed)], [width], bias=False, rngs=rngs)
        else:
            self.project = None
        if not config.tied:
            self.matrix: Linear | None = Linear(config, [width], [("vocab", config.vocab)], bias=False, rngs=rngs)
        else:
            self.matrix = None
        if config.output_bias:
            self.bias: Weight | None = weight(jnp.zeros(config.vocab, jnp.float32), ("vocab",))
        else:
            self.bias = None

    def __call__(self, states: Float[Array, "b l d"], table: Embed | CharacterEmbedding) -> Float[Array, "b l v"]:
        if self.transform is not None and self.norm is not None:
            states = self.norm(ACTIVATIONS[self.activation](self.transform(states)))
        if self.project is not None:
            states = self.project(states)
        return self.scores(states, table)

    def scores(self, states: Float[Array, "b l d"], table: Embed | CharacterEmbedding) -> Float[Array, "b l v"]:
        """Return the scores without the transform."""
        states = states * self.scale
        if self.matrix is None:
            assert isinstance(table, Embed)
            scores = table.attend(states)
        else:
            scores = self.matrix(states)
        scores = scores.astype(jnp.float32)
        if self.bias is not None:
            scores = scores + self.bias[...]
        if self.softcap is not None:
            scores = self.softcap * jnp.tanh(scores / self.softcap)
        return scores


class SentenceOutput(nnx.Module):
    """Two classes from the first token, through a dense tanh layer: BERT's pooler and next-sentence head."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        embed = ("embed", config.embed)
        self.pooler = Linear(config, [embed], [("embed_out", config.embed)], rngs=rngs)
        self.classes = Linear(config, [embed], [("classes", 2)], rngs=rngs)

    def __call__(self, states: Float[Array, "b l d"]) -> Float[Array, "b 2"]:
        return self.classes(jnp.tanh(self.pooler(states[:, 0]))).astype(jnp.float32)


class DetectionOutput(nnx.Module):
    """One score a token: whether it was replaced (Clark et al. 2020, §2).

    Attributes:
        norm: the norm of the sum of each state and the first one of its document, which is scored in the place of the
            state (DeBERTa-v3's code); None without it.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        embed = ("embed", config.embed)
        self.activation = config.dense_feedforward.activation
        if config.detection_context:
            self.norm: Norm | None = Norm(config.norm, embed)
        else:
            self.norm = None
        self.transform = Linear(config, [embed], [("embed_out", config.embed)], rngs=rngs)
        self.score = Linear(config, [embed], [("classes", 1)], rngs=rngs)

    def __call__(
        self, states: Float[Array, "b l d"], segment_ids: Int[Array, "b l"] | None = None
    ) -> Float[Array, "b l"]:
        """Return the scores. `segment_ids` are the document of each token; None: every row is one document."""
        if self.norm is not None:
            states = self.norm(states + _first_states(states, segment_ids))
        return self.score(ACTIVATIONS[self.activation](self.transform(states)))[..., 0].astype(jnp.float32)


class TaskOutput(nnx.Module):
    """Scores of a task, in float32: of every token, or of what a text's states are pooled to (`model.head`)."""

    def __init__(self, config: ModelConfig, head: HeadConfig, *, rngs: nnx.Rngs) -> None:
        pooled_width = config.embed * (3 if head.pool == "concat" else 1)
        self.pool = head.pool
        self.activation = HEAD_ACTIVATIONS[head.activation]
        self.normalize = head.normalize
        self.dropout = config.dropout
        self.parts = head.parts
        if isinstance(head.mixer, StateMixer):
            self.mixer: MixerModule | None = MixerModule(config, head.mixer, rngs=rngs)
        else:
            self.mixer = None
        if head.crf:
            zeros = jnp.zeros((head.outputs, head.outputs), jnp.float32)
            self.transitions: Weight | None = weight(zeros, ("classes", "classes"))
        else:
            self.transitions = None
        if head.transform:
            inputs = ("embed", pooled_width)
            self.pooler: Linear | None = Linear(config, [inputs], [("embed_out", config.embed)], rngs=rngs)
            pooled_width = config.embed
        else:
            self.pooler = None
        if head.outputs:
            width = ("embed", pooled_width * self.parts)
            self.scores: Linear | None = Linear(config, [width], [("classes", head.outputs)], bias=True, rngs=rngs)
        else:
            self.scores = None

    def pooled(
        self,
        states: Float[Array, "b l d"],
        tokens: Int[Array, "b l"],
        segment_ids: Int[Array, "b l"],
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b *l d"]:
        """Return one vector for each text, or for each token of a head on tokens.

        Soft prompts, whose ids are below zero, are excluded. A key turns the dropout of the recurrence on.
        """
        if self.mixer is not None:
            mixer_key = None
            if key is not None:
                mixer_key = jax.random.fold_in(key, 2)
            states, _ = self.mixer(states, segment_ids, key=mixer_key)
        if self.pool != "none":
            states = POOLS[self.pool](states, is_text(tokens, segment_ids))
        if self.pooler is not None:
            states = self.activation(self.pooler(states))
        if self.normalize:
            states = normalize(states).astype(states.dtype)
        return states

    def __call__(self, pooled: Float[Array, "... d"], key: PRNGKeyArray | None) -> Float[Array, "... c"]:
        assert self.scores is not None
        dropout_key = None
        if key is not None:
            dropout_key = jax.random.fold_in(key, 1)
        return self.scores(dropout(pooled, self.dropout, dropout_key)).astype(jnp.float32)


class SpanOutput(nnx.Module):
    """States for a span's tokens from those at its borders and the position inside it (Joshi et al. 2020, §3.2)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        width = ("embed_out", config.embedding)
        inputs = 2 * config.embed + SPAN_POSITION_WIDTH
        self.activation = config.dense_feedforward.activation
        self.positions = Embed(config, SPAN_POSITIONS, SPAN_POSITION_WIDTH, axis="position", rngs=rngs)
        self.first = Linear(config, [("embed", inputs)], [width], rngs=rngs)
        self.first_norm = Norm(config.norm, width)
        self.second = Linear(config, [("embed", config.embedding)], [width], rngs=rngs)
        self.second_norm = Norm(config.norm, width)

    def __call__(
        self, left: Float[Array, "b p d"], right: Float[Array, "b p d"], position: Int[Array, "b p"]
    ) -> Float[Array, "b p e"]:
        activation = ACTIVATIONS[self.activation]
        borders = jnp.concatenate([left, right, self.positions(position)], axis=-1)
        first = self.first_norm(activation(self.first(borders)))
        return self.second_norm(activation(self.second(first)))
