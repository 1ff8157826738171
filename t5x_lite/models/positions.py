"""How a token knows its place: a vector added to its embedding, or something done inside attention."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from t5x_lite.models.components import ALiBi, Learned, Llama3Stretch, Relative, Rotary, Sinusoidal
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layers import Embed, deviation, weight


class Positions(nnx.Module):
    """Nothing tells places; the others override what they change. `own` is `config.positions`."""

    def __init__(self, own: Any, config: ModelConfig, rngs: nnx.Rngs) -> None:
        pass

    def __call__(self, x: Float[Array, "b l d"], positions: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        """Applied once, to the token embeddings."""
        return x

    def rotate(self, x: Float[Array, "b l h k"], positions: Int[Array, "b l"]) -> Float[Array, "b l h k"]:
        """Applied in every layer, to queries and to keys."""
        return x

    def bias(self, *, causal: bool) -> Callable[[Any, Any], Float[Array, "h l m"]] | None:
        """What is added to the scores, from the places of queries and of keys."""
        by_offset = self.offset_bias(causal=causal)
        return None if by_offset is None else lambda query, key: by_offset(key[None, :] - query[:, None])

    def offset_bias(self, *, causal: bool) -> Callable[[Int[Array, "..."]], Float[Array, "h ..."]] | None:
        """A function from offsets, key - query, to the bias of the scores of every head; None: no bias."""
        return None


class LearnedPositions(Positions):
    """A trained vector per position."""

    def __init__(self, own: Learned, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.offset = own.offset
        self.table = Embed(config, own.length + own.offset, config.width_of_embedding, name="position", rngs=rngs)

    def __call__(self, x: Float[Array, "b l d"], positions: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        return x + self.table(positions + self.offset)


class SinusoidalPositions(Positions):
    """sin(p / 10000^(2i/d)) and the cosine of the same, sines first and cosines after (Vaswani et al. 2017, §3.5)."""

    def __call__(self, x: Float[Array, "b l d"], positions: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        angles = positions[..., None].astype(jnp.float32) * _frequencies(x.shape[-1], 10000.0)
        return x + jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1).astype(x.dtype)


class RotaryPositions(Positions):
    """Channel i of the first half and of the second half of a head are rotated by p / theta^(2i/k) (Su et al. 2021)."""

    def __init__(self, own: Rotary, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.rotary = own

    def rotate(self, x: Float[Array, "b l h k"], positions: Int[Array, "b l"]) -> Float[Array, "b l h k"]:
        frequencies = _frequencies(x.shape[-1], self.rotary.theta)
        if self.rotary.stretch is not None:
            frequencies = _stretched(frequencies, self.rotary.stretch)
        angles = (positions[..., None].astype(jnp.float32) * frequencies)[:, :, None, :]
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class RelativePositions(Positions):
    """T5's table of `[buckets, heads]`: distances exact up to half the buckets, then in logarithmic steps."""

    def __init__(self, own: Relative, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.relative = own
        std = deviation(config, config.embed)
        table = std * jax.random.normal(rngs.params(), (own.buckets, config.heads), jnp.float32)
        self.table = weight(table, ("buckets", "heads"), table=True)

    def offset_bias(self, *, causal: bool) -> Callable[[Int[Array, "..."]], Float[Array, "h ..."]] | None:
        table, relative = self.table[...], self.relative

        def bias(offset: Int[Array, "..."]) -> Float[Array, "h ..."]:
            buckets = bucket(offset, relative.buckets, relative.distance, both_ways=not causal)
            # A product with zeros and ones: the gradient of looking up a table is a scatter, which TPUs are slow at.
            chosen = jax.nn.one_hot(buckets, relative.buckets, dtype=table.dtype)
            return jnp.einsum("...r,rh->h...", chosen, table, precision=jax.lax.Precision.HIGHEST)

        return bias


class LinearPositions(Positions):
    """-slope·distance, the slopes of n heads 2^(-8/n), 2^(-16/n), …, 2^-8 (Press et al. 2022, §3)."""

    def __init__(self, own: ALiBi, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.heads = config.heads

    def offset_bias(self, *, causal: bool) -> Callable[[Int[Array, "..."]], Float[Array, "h ..."]] | None:
        slopes = 2.0 ** (-8.0 * jnp.arange(1, self.heads + 1) / self.heads)
        return lambda offset: -slopes.reshape(-1, *[1] * offset.ndim) * jnp.abs(offset)


def bucket(offset: Int[Array, "l m"], buckets: int, distance: int, *, both_ways: bool) -> Int[Array, "l m"]:
    """The bucket of each offset key - query (Raffel et al. 2020, §2.1, and T5's code).

    Both ways, keys after the query have the upper half of the buckets. Half of what a direction has are single
    distances; the others widen logarithmically up to `distance`. The logarithm is taken in float32 and truncated.
    """
    first = jnp.zeros_like(offset)
    if both_ways:
        buckets //= 2
        first = buckets * (offset > 0)
        away = jnp.abs(offset)
    else:
        away = jnp.maximum(-offset, 0)
    exact = buckets // 2
    octaves = jnp.log(jnp.maximum(away, 1).astype(jnp.float32) / exact) / math.log(distance / exact)
    far = exact + (octaves * (buckets - exact)).astype(jnp.int32)
    return first + jnp.where(away < exact, away, jnp.minimum(far, buckets - 1))


def _frequencies(channels: int, theta: float) -> Float[Array, "half"]:
    return theta ** (-jnp.arange(0, channels, 2, dtype=jnp.float32) / channels)


def _stretched(frequencies: Float[Array, "half"], stretch: Llama3Stretch) -> Float[Array, "half"]:
    """Slow turns divided by the factor, fast ones kept, and a straight line between (Llama 3.1's code)."""
    turns = stretch.original_length * frequencies / (2 * math.pi)
    kept = jnp.clip((turns - stretch.low) / (stretch.high - stretch.low), 0.0, 1.0)
    return (1 - kept) * frequencies / stretch.factor + kept * frequencies


ADDED: dict[type, type[Positions]] = {Learned: LearnedPositions, Sinusoidal: SinusoidalPositions}
ATTENDED: dict[type, type[Positions]] = {Rotary: RotaryPositions, Relative: RelativePositions, ALiBi: LinearPositions}


def added(config: ModelConfig, rngs: nnx.Rngs) -> Positions:
    """What a model's positions add to its embeddings."""
    return ADDED.get(type(config.positions), Positions)(config.positions, config, rngs)


def attended(config: ModelConfig, rngs: nnx.Rngs, *, layer: bool) -> Positions:
    """What a model's positions do in attention: in the stack once, or with `layer` what each layer has of its own."""
    own = config.positions
    in_layers = isinstance(own, Relative) and not own.shared
    kind = ATTENDED.get(type(own), Positions) if layer == in_layers else Positions
    return kind(own, config, rngs)
