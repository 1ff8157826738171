"""The Transformer as a whole: embeddings, stack, output."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from t5x_lite.models.attention import Context, KeysValues
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.kernels import Places
from t5x_lite.models.layers import Axes, Embed, Linear, Weight, dropout
from t5x_lite.models.positions import POSITIONS
from t5x_lite.models.stack import Stack


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """What a decoder remembers of the tokens so far: keys and values, their segments, and how many there are."""

    layers: list[KeysValues]
    segment_ids: Int[Array, "b m"]
    index: Int[Array, ""]


class Decoder(nnx.Module):
    """A causal language model: GPT and its descendants, by the components of its config."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        if config.vocab is None:
            raise ValueError("model.vocab must be known; `with_vocab` takes it from the tokenizer")
        self.config = config
        self.embedding = Embed(config, config.vocab, rngs=rngs)
        self.positions = POSITIONS[type(config.positions)](config, rngs)
        self.stack = Stack(config, rngs=rngs)
        unbiased = config.model_copy(update={"bias": False})
        self.output = (
            None if config.tied else Linear(unbiased, [("embed", config.embed)], [("vocab", config.vocab)], rngs=rngs)
        )

    def __call__(
        self,
        tokens: Int[Array, "b l"],
        *,
        positions: Int[Array, "b l"] | None = None,
        segment_ids: Int[Array, "b l"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "b l d"]:
        """The last layer's states. Without positions and segments a row is one document; `key` turns dropout on."""
        index = jnp.arange(tokens.shape[1])
        places = Places(index, jnp.ones_like(tokens) if segment_ids is None else segment_ids)
        at = jnp.broadcast_to(index, tokens.shape) if positions is None else positions
        return self._run(tokens, at, Context(self._rotation(at), places, places), None, key)[0]

    def extend(
        self, tokens: Int[Array, "b l"], segment_ids: Int[Array, "b l"], cache: Cache
    ) -> tuple[Float[Array, "b l d"], Cache]:
        """States of `tokens` that follow those of `cache`, and the longer cache.

        Rows of unequal length are padded on the left (segment 0), so that all end together; a token's position is the
        number of real tokens before it.
        """
        index = cache.index + jnp.arange(tokens.shape[1])
        segments = jax.lax.dynamic_update_slice_in_dim(cache.segment_ids, segment_ids, cache.index, axis=1)
        before = jnp.sum(cache.segment_ids > 0, axis=1, keepdims=True)
        at = jnp.maximum(before + jnp.cumsum(segment_ids > 0, axis=1) - 1, 0)
        queries, keys = Places(index, segment_ids), Places(jnp.arange(segments.shape[1]), segments)
        hidden, layers = self._run(tokens, at, Context(self._rotation(at), queries, keys), cache.layers, None)
        assert layers is not None
        return hidden, Cache(layers, segments, cache.index + tokens.shape[1])

    def empty_cache(self, batch: int, length: int) -> Cache:
        """Room for `length` tokens in each of `batch` rows."""
        return Cache(self.stack.empty_cache(batch, length), jnp.zeros((batch, length), jnp.int32), jnp.int32(0))

    def logits(self, hidden: Float[Array, "b l d"]) -> Float[Array, "b l v"]:
        """Scores of every token of the vocabulary, in float32."""
        scores = self.embedding.attend(hidden) if self.output is None else self.output(hidden)
        scores = scores.astype(jnp.float32)
        cap = self.config.logit_softcap
        return scores if cap is None else cap * jnp.tanh(scores / cap)

    def _rotation(self, at: Int[Array, "b l"]) -> Callable[[Array], Array]:
        return lambda x: self.positions.rotate(x, at)

    def _run(
        self,
        tokens: Int[Array, "b l"],
        at: Int[Array, "b l"],
        context: Context,
        cache: list[KeysValues] | None,
        key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "b l d"], list[KeysValues] | None]:
        first, rest = (None, None) if key is None else jax.random.split(key)
        x = self.positions.add(self.embedding(tokens) * self.config.scale_embedding, at)
        x = dropout(x, self.config.dropout, first)
        return self.stack(x, context, cache, rest)


FAMILIES: dict[str, type[Decoder]] = {"decoder": Decoder}


@dataclass(frozen=True)
class Blueprint:
    """A model without its weights: `params` is a nested dict of arrays, everything else is here.

    `axes` has the shape of `params`, an `Axes` for each array.
    """

    graph: Any
    axes: Any
    shapes: Any

    def model(self, params: Any) -> Any:
        """The module with these weights."""
        return nnx.merge(self.graph, _variables(self.axes, params))

    @property
    def parameters(self) -> int:
        """Number of trained values."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.shapes))


def _variables(axes: Any, params: Any) -> nnx.State:
    return nnx.State(jax.tree.map(lambda a, p: Weight(p, axes=a), axes, params))


def blueprint(config: ModelConfig) -> Blueprint:
    """The structure and shapes of a model, without allocating anything."""
    graph, state = nnx.split(nnx.eval_shape(lambda: FAMILIES[config.family](config, rngs=nnx.Rngs(params=0))))
    is_weight = lambda leaf: isinstance(leaf, Weight)  # noqa: E731
    plain = nnx.to_pure_dict(state)
    axes = nnx.to_pure_dict(jax.tree.map(lambda w: w.axes, state, is_leaf=is_weight))
    return Blueprint(graph, axes, plain)


def initial(config: ModelConfig, key: PRNGKeyArray) -> Any:
    """Fresh weights as a nested dict; call it under `jax.jit` with the shardings that they should have."""
    return nnx.to_pure_dict(nnx.state(FAMILIES[config.family](config, rngs=nnx.Rngs(params=key))))


__all__ = ["FAMILIES", "Axes", "Blueprint", "Cache", "Decoder", "blueprint", "initial"]
