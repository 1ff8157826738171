"""What a model predicts from its states: tokens, the relation of two sentences, replaced tokens, a span's tokens."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from t5x_lite.models.config import SPAN_POSITIONS, HeadConfig, ModelConfig
from t5x_lite.models.layers import ACTIVATIONS, Embed, Linear, Norm, dropout, weight
from t5x_lite.models.losses import MASK_VALUE

SPAN_POSITION_WIDTH = 200
"""Width of their embedding (Joshi et al. 2020, code: pair_positional_embedding_size)."""


def _at(states: Float[Array, "b l d"], place: Int[Array, "b"]) -> Float[Array, "b d"]:
    return jnp.take_along_axis(states, place[:, None, None], axis=1)[:, 0]


POOLS: dict[str, Callable[[Float[Array, "b l d"], Bool[Array, "b l"]], Float[Array, "b d"]]] = {
    "first": lambda x, own: _at(x, own.argmax(1)),
    "last": lambda x, own: _at(x, own.shape[1] - 1 - own[:, ::-1].argmax(1)),
    "mean": lambda x, own: jnp.sum(x * own[..., None], axis=1) / jnp.maximum(own.sum(1, keepdims=True), 1),
    "max": lambda x, own: jnp.where(own[..., None], x, MASK_VALUE).max(1),
}
"""A text's states as one, from which of them count (Reimers & Gurevych 2019, §3)."""


class TokenOutput(nnx.Module):
    """Scores of every token of the vocabulary, in float32; a tied model takes its token table as the matrix."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        assert config.vocab is not None
        width = ("embed", config.width_of_embedding)
        self.activation, self.cap = config.dense_feedforward.activation, config.logit_softcap
        self.scale = (config.embed**-0.5 if config.scale_output else 1.0) / config.times_base
        transformed = config.output_transform
        self.transform = Linear(config, [("embed", config.embed)], [width], rngs=rngs) if transformed else None
        self.norm = Norm(config.norm, width) if transformed else None
        vocab = ("vocab", config.vocab)
        self.matrix = None if config.tied else Linear(config, [width], [vocab], bias=False, rngs=rngs)
        self.bias = weight(jnp.zeros(config.vocab, jnp.float32), ("vocab",)) if config.output_bias else None

    def __call__(self, hidden: Float[Array, "b l d"], table: Embed) -> Float[Array, "b l v"]:
        if self.transform is not None and self.norm is not None:
            hidden = self.norm(ACTIVATIONS[self.activation](self.transform(hidden)))
        return self.scores(hidden, table)

    def scores(self, hidden: Float[Array, "b l d"], table: Embed) -> Float[Array, "b l v"]:
        """Scores without the transform."""
        hidden = hidden * self.scale
        scores = (table.attend(hidden) if self.matrix is None else self.matrix(hidden)).astype(jnp.float32)
        scores = scores if self.bias is None else scores + self.bias[...]
        return scores if self.cap is None else self.cap * jnp.tanh(scores / self.cap)


class SentenceOutput(nnx.Module):
    """Two classes from the first token, through a dense tanh layer: BERT's pooler and next-sentence head."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        embed = ("embed", config.embed)
        self.pooler = Linear(config, [embed], [("embed_out", config.embed)], rngs=rngs)
        self.classes = Linear(config, [embed], [("classes", 2)], rngs=rngs)

    def __call__(self, hidden: Float[Array, "b l d"]) -> Float[Array, "b 2"]:
        return self.classes(jnp.tanh(self.pooler(hidden[:, 0]))).astype(jnp.float32)


class DetectionOutput(nnx.Module):
    """One score a token: was it replaced? (Clark et al. 2020, §2)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        embed = ("embed", config.embed)
        self.activation = config.dense_feedforward.activation
        self.transform = Linear(config, [embed], [("embed_out", config.embed)], rngs=rngs)
        self.score = Linear(config, [embed], [("classes", 1)], rngs=rngs)

    def __call__(self, hidden: Float[Array, "b l d"]) -> Float[Array, "b l"]:
        return self.score(ACTIVATIONS[self.activation](self.transform(hidden)))[..., 0].astype(jnp.float32)


class TaskOutput(nnx.Module):
    """Scores of a task, float32: of every token, or of what a text's states are pooled to (`model.head`)."""

    def __init__(self, config: ModelConfig, head: HeadConfig, *, rngs: nnx.Rngs) -> None:
        embed = ("embed", config.embed)
        self.pool, self.dropout, self.parts = head.pool, config.dropout, head.parts
        self.pooler = Linear(config, [embed], [("embed_out", config.embed)], rngs=rngs) if head.transform else None
        width = ("embed", config.embed * self.parts)
        self.scores = (
            Linear(config, [width], [("classes", head.outputs)], bias=True, rngs=rngs) if head.outputs else None
        )

    def pooled(self, states: Float[Array, "b l d"], tokens: Int[Array, "b l"], segments: Int[Array, "b l"]) -> Array:
        """`[b, d]` (`[b, l, d]` of a head on tokens); soft prompts, whose ids are below zero, are left out."""
        if self.pool != "none":
            states = POOLS[self.pool](states, (segments > 0) & (tokens >= 0))
        return states if self.pooler is None else jnp.tanh(self.pooler(states))

    def __call__(self, pooled: Float[Array, "... d"], key: PRNGKeyArray | None) -> Float[Array, "... c"]:
        assert self.scores is not None
        own = None if key is None else jax.random.fold_in(key, 1)
        return self.scores(dropout(pooled, self.dropout, own)).astype(jnp.float32)


class SpanOutput(nnx.Module):
    """States for a span's tokens from the states at its borders and the place inside it (Joshi et al. 2020, §3.2)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        width = ("embed_out", config.width_of_embedding)
        inputs = 2 * config.embed + SPAN_POSITION_WIDTH
        self.activation = config.dense_feedforward.activation
        self.positions = Embed(config, SPAN_POSITIONS, SPAN_POSITION_WIDTH, name="position", rngs=rngs)
        self.first = Linear(config, [("embed", inputs)], [width], rngs=rngs)
        self.first_norm = Norm(config.norm, width)
        self.second = Linear(config, [("embed", config.width_of_embedding)], [width], rngs=rngs)
        self.second_norm = Norm(config.norm, width)

    def __call__(
        self, left: Float[Array, "b p d"], right: Float[Array, "b p d"], place: Int[Array, "b p"]
    ) -> Float[Array, "b p d"]:
        borders = jnp.concatenate([left, right, self.positions(place)], axis=-1)
        first = self.first_norm(ACTIVATIONS[self.activation](self.first(borders)))
        return self.second_norm(ACTIVATIONS[self.activation](self.second(first)))
