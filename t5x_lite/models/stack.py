"""Block: one layer. Stack: the repeating pattern of layers, stacked in memory and scanned."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from t5x_lite.models import positions
from t5x_lite.models.attention import Attention, KeysValues, empty_cache, follow
from t5x_lite.models.config import LayerConfig, ModelConfig, MoE, RematPolicy
from t5x_lite.models.feedforward import PERCEPTRONS
from t5x_lite.models.kernels import Places, View
from t5x_lite.models.layers import Norm, dropout
from t5x_lite.models.moe import MixtureOfExperts
from t5x_lite.models.patterns import Dense

Sublayer = Callable[[Array], Array]

RESIDUALS: dict[str, Callable[[Array, Norm, Sublayer], Array]] = {
    "pre": lambda x, norm, sublayer: x + sublayer(norm(x)),
    "post": lambda x, norm, sublayer: norm(x + sublayer(x)),
    "sublayer": lambda x, norm, sublayer: x + norm(sublayer(x)),
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Memory:
    """What cross-attention looks at: an encoder's states, and where they stand.

    In decoding `states` are None and each layer is given its keys and values of them.
    """

    places: Places
    states: Float[Array, "b m d"] | None = None


class Block(nnx.Module):
    """Self-attention, cross-attention in a decoder that has a memory, and feed-forward: each residual and normed."""

    def __init__(self, config: ModelConfig, layer: LayerConfig, *, cross: bool, rngs: nnx.Rngs) -> None:
        feedforward = config.feedforward_of(layer)
        embed = ("embed", config.embed)
        self.residual, self.dropout = config.norm_place, config.dropout
        self.attention_norm = Norm(config.norm, embed)
        self.attention = Attention(config, layer.attention, rngs=rngs)
        self.feedforward_norm = Norm(config.norm, embed)
        self.experts = isinstance(feedforward, MoE)
        self.feedforward: Any = (
            MixtureOfExperts(config, feedforward, rngs=rngs)
            if isinstance(feedforward, MoE)
            else PERCEPTRONS[type(feedforward)](config, feedforward, config.width_of_mlp, rngs=rngs)
        )
        self.cross_norm = Norm(config.norm, embed) if cross else None
        self.cross_attention = Attention(config, Dense(), cross=True, rngs=rngs) if cross else None

    def __call__(
        self,
        x: Float[Array, "b l d"],
        view: View,
        memory: Memory | None = None,
        cache: KeysValues | None = None,
        remembered: KeysValues | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "b l d"], KeysValues | None]:
        """One layer.

        Args:
            x: states of the tokens.
            view: what they may see of each other, or of the cache after their keys are written into it.
            memory: what cross-attention looks at.
            cache: keys and values of earlier tokens; comes back with the new ones.
            remembered: this layer's keys and values of the memory, where they are known.
            key: turns dropout on.
        """
        residual = RESIDUALS[self.residual]
        keys = dict.fromkeys(range(6)) if key is None else dict(enumerate(jax.random.split(key, 6)))

        def attend(y: Array) -> Array:
            nonlocal cache
            own, seen = self.attention.keys_values(y, view), view
            if cache is not None:
                own, seen, cache = follow(cache, own, view)
            return dropout(self.attention(y, own, seen, keys[0]), self.dropout, keys[1])

        def look(y: Array) -> Array:
            assert memory is not None
            assert self.cross_attention is not None
            across = View(view.queries, memory.places, causal=False)
            source = remembered
            if source is None:
                assert memory.states is not None
                source = self.cross_attention.keys_values(memory.states, across)
            return dropout(self.cross_attention(y, source, across, keys[2]), self.dropout, keys[3])

        x = residual(x, self.attention_norm, attend)
        if self.cross_attention is not None and self.cross_norm is not None:
            x = residual(x, self.cross_norm, look)

        def think(y: Array) -> Array:
            real = (view.queries.segment_ids > 0,) if self.experts else ()
            return dropout(self.feedforward(y, *real, keys[4]), self.dropout, keys[5])

        x = residual(x, self.feedforward_norm, think)
        return x, cache


class Stack(nnx.Module):
    """`layers` layers as repeats of the pattern. Weights have a leading axis over repeats, which are one `lax.scan`.

    With `shared_layers` that axis has length one and all repeats use it; with `like`, all but cross-attention are the
    other stack's own weights.
    """

    def __init__(
        self,
        config: ModelConfig,
        layers: int,
        *,
        causal: bool,
        cross: bool = False,
        like: "Stack | None" = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.config, self.causal = config, causal
        self.repeats = layers // len(config.pattern)

        def period(key: PRNGKeyArray) -> nnx.Dict:
            own = nnx.Rngs(params=key)
            return nnx.Dict(
                {str(n): Block(config, layer, cross=cross, rngs=own) for n, layer in enumerate(config.pattern)}
            )

        self.layers = nnx.vmap(period)(jax.random.split(rngs.params(), 1 if config.shared_layers else self.repeats))
        self.positions = positions.attended(config, rngs, layer=False)
        self.final_norm = None if config.norm_place == "post" else Norm(config.norm, ("embed", config.embed))
        if like is not None:
            self.positions, self.final_norm = like.positions, like.final_norm
            for number in self.layers:
                for name in ("attention_norm", "attention", "feedforward_norm", "feedforward"):
                    setattr(self.layers[number], name, getattr(like.layers[number], name))

    def view(self, queries: Places, keys: Places, at: Int[Array, "b l"]) -> View:
        """What queries at positions `at` may see of the keys."""
        bias = of = self.positions.bias(causal=self.causal)
        if of is not None:
            whole = of(queries.index, keys.index)  # once for all layers that compute the whole square

            def bias(query: Array, key: Array) -> Array:
                return whole if query is queries.index and key is keys.index else of(query, key)

        return View(queries, keys, self.causal, lambda x: self.positions.rotate(x, at), bias)

    def __call__(
        self,
        x: Float[Array, "b l d"],
        view: View,
        memory: Memory | None = None,
        cache: list[KeysValues] | None = None,
        remembered: list[KeysValues] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "b l d"], list[KeysValues] | None]:
        """All layers; see `Block.__call__`. Caches hold one entry a layer of the pattern, stacked over the repeats."""
        period = len(self.config.pattern)
        keys = None if key is None else jax.random.split(key, (self.repeats, period))

        def one_period(x: Array, blocks: Any, scanned: tuple[Any, Any, Any]) -> tuple[Array, Any]:
            cache, remembered, keys = scanned
            caches = []
            for n in range(period):
                own = [None if part is None else part[n] for part in (cache, remembered, keys)]
                x, new = blocks[str(n)](x, view, memory, *own)
                caches.append(new)
            seen = {n: block.feedforward.seen.get_value() for n, block in blocks.items() if block.experts}
            return x, (None, seen) if cache is None else (caches, {})

        x, (cache, seen) = self._scan(one_period, x, (cache, remembered, keys))
        if seen:
            self.seen = nnx.Intermediate(seen)
        return (x if self.final_norm is None else self.final_norm(x)), cache

    def _scan(self, body: Callable[..., tuple[Any, Any]], carry: Any, scanned: Any) -> tuple[Any, Any]:
        """`body(carry, blocks of one period, part of scanned)` for every repeat."""
        graph, weights = nnx.split(self.layers)
        shared = self.config.shared_layers

        def one(carry: Any, parts: tuple[Any, Any]) -> tuple[Any, Any]:
            own = jax.tree.map(lambda w: w[0], weights) if shared else parts[0]
            return body(carry, nnx.merge(graph, own), parts[1])

        return jax.lax.scan(
            _rematerialised(one, self.config.remat),
            carry,
            (None if shared else weights, scanned),
            length=self.repeats,
            unroll=self.config.unroll or self.repeats,
        )

    def remember(self, memory: Memory) -> list[KeysValues]:
        """Each layer's keys and values of a memory: made once, used for every token that is decoded."""

        def one_period(_: None, blocks: Any, __: None) -> tuple[None, list[KeysValues]]:
            view = View(memory.places, memory.places, causal=False)
            layers = [blocks[str(n)].cross_attention for n in range(len(self.config.pattern))]
            return None, [layer.keys_values(memory.states, view) for layer in layers]

        return self._scan(one_period, None, None)[1]

    def empty_cache(self, batch: int, length: int) -> list[KeysValues]:
        """A cache for `length` tokens of every layer."""
        layers = [empty_cache(self.config, layer.attention, batch, length) for layer in self.config.pattern]
        return jax.tree.map(lambda a: jnp.broadcast_to(a, (self.repeats, *a.shape)), layers)


def _rematerialised(body: Callable[..., Any], policy: RematPolicy) -> Callable[..., Any]:
    """`body` with the share of its activations that `policy` names recomputed in the backward pass."""
    policies = jax.checkpoint_policies
    match policy:
        case "none":
            return body
        case "full":
            return jax.checkpoint(body, policy=policies.nothing_saveable, prevent_cse=False)
        case "dots":
            return jax.checkpoint(body, policy=policies.dots_saveable, prevent_cse=False)
        case "dots_no_batch":
            return jax.checkpoint(body, policy=policies.dots_with_no_batch_dims_saveable, prevent_cse=False)
