"""Block: one layer. Stack: the repeating pattern of layers, stacked in memory and scanned."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from t5x_lite.models.attention import Attention, Context, KeysValues, empty_cache
from t5x_lite.models.config import LayerConfig, ModelConfig, RematPolicy
from t5x_lite.models.feedforward import FEEDFORWARDS
from t5x_lite.models.layers import Norm, dropout

Sublayer = Callable[[Array], Array]

RESIDUALS: dict[str, Callable[[Array, Norm, Sublayer], Array]] = {
    "pre": lambda x, norm, sublayer: x + sublayer(norm(x)),
    "post": lambda x, norm, sublayer: norm(x + sublayer(x)),
}


class Block(nnx.Module):
    """Attention and feed-forward, each with its residual connection and norm."""

    def __init__(self, config: ModelConfig, layer: LayerConfig, *, rngs: nnx.Rngs) -> None:
        feedforward = layer.feedforward or config.feedforward
        self.residual = config.norm_place
        self.dropout = config.dropout
        self.attention_norm = Norm(config.norm, config.embed)
        self.attention = Attention(config, layer, rngs=rngs)
        self.feedforward_norm = Norm(config.norm, config.embed)
        self.feedforward = FEEDFORWARDS[type(feedforward)](config, feedforward.activation, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b l d"],
        context: Context,
        cache: KeysValues | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "b l d"], KeysValues | None]:
        """One layer; see `Attention.__call__`."""
        residual = RESIDUALS[self.residual]
        inner, after_attention, after_feedforward = (None,) * 3 if key is None else jax.random.split(key, 3)

        def attend(y: Array) -> Array:
            nonlocal cache
            y, cache = self.attention(y, context, cache, inner)
            return dropout(y, self.dropout, after_attention)

        x = residual(x, self.attention_norm, attend)
        x = residual(
            x,
            self.feedforward_norm,
            lambda y: dropout(self.feedforward(y, inner), self.dropout, after_feedforward),
        )
        return x, cache


class Stack(nnx.Module):
    """`repeats` times the pattern. Weights have a leading axis over repeats; the repeats are one `lax.scan`."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config

        def period(key: PRNGKeyArray) -> nnx.Dict:
            own = nnx.Rngs(params=key)
            return nnx.Dict({str(n): Block(config, layer, rngs=own) for n, layer in enumerate(config.pattern)})

        self.layers = nnx.vmap(period)(jax.random.split(rngs.params(), config.repeats))
        self.final_norm = Norm(config.norm, config.embed) if config.norm_place == "pre" else None

    def __call__(
        self,
        x: Float[Array, "b l d"],
        context: Context,
        cache: list[KeysValues] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "b l d"], list[KeysValues] | None]:
        """All layers. `cache` holds one entry a layer of the pattern, each stacked over the repeats."""
        graph, weights = nnx.split(self.layers)
        repeats, period = self.config.repeats, len(self.config.pattern)
        keys_of_layers = None if key is None else jax.random.split(key, (repeats, period))

        def one_period(x: Array, scanned: tuple[Any, Any, Any]) -> tuple[Array, Any]:
            weights, cache, layer_keys = scanned
            blocks: Any = nnx.merge(graph, weights)
            caches = []
            for number in range(period):
                own = None if layer_keys is None else layer_keys[number]
                x, new = blocks[str(number)](x, context, None if cache is None else cache[number], own)
                caches.append(new)
            return x, (None if cache is None else caches)

        x, cache = jax.lax.scan(
            _rematerialised(one_period, self.config.remat),
            x,
            (weights, cache, keys_of_layers),
            unroll=self.config.unroll or repeats,
        )
        return (x if self.final_norm is None else self.final_norm(x)), cache

    def empty_cache(self, batch: int, length: int) -> list[KeysValues]:
        """A cache for `length` tokens of every layer."""
        one = empty_cache(self.config, batch, length)
        stacked = jax.tree.map(lambda a: jnp.broadcast_to(a, (self.config.repeats, *a.shape)), one)
        return [stacked for _ in self.config.pattern]


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
