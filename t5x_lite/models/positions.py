"""How a token knows its place: something added to its embedding, or a rotation of queries and keys."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from t5x_lite.models.config import Learned, ModelConfig, NoPositions, Rotary, Sinusoidal
from t5x_lite.models.layers import Embed


class Positions(nnx.Module):
    """No positions; the others override what they change."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        pass

    def add(self, x: Float[Array, "b l d"], positions: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        """Applied once, to the token embeddings."""
        return x

    def rotate(self, x: Float[Array, "b l h k"], positions: Int[Array, "b l"]) -> Float[Array, "b l h k"]:
        """Applied in every layer, to queries and to keys."""
        return x


class LearnedPositions(Positions):
    """A trained vector per position."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        assert isinstance(config.positions, Learned)
        self.table = Embed(config, config.positions.length, name="position", rngs=rngs)

    def add(self, x: Float[Array, "b l d"], positions: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        return x + self.table(positions)


class SinusoidalPositions(Positions):
    """sin(p / 10000^(2i/d)) and the cosine of the same, sines first and cosines after (Vaswani et al. 2017, §3.5)."""

    def add(self, x: Float[Array, "b l d"], positions: Int[Array, "b l"]) -> Float[Array, "b l d"]:
        angles = _angles(positions, x.shape[-1], 10000.0)
        return x + jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1).astype(x.dtype)


class RotaryPositions(Positions):
    """Channel i of the first half and of the second half of a head are rotated by p / theta^(2i/k) (Su et al. 2021)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        assert isinstance(config.positions, Rotary)
        self.theta = config.positions.theta

    def rotate(self, x: Float[Array, "b l h k"], positions: Int[Array, "b l"]) -> Float[Array, "b l h k"]:
        angles = _angles(positions, x.shape[-1], self.theta)[:, :, None, :]
        cos, sin = jnp.cos(angles), jnp.sin(angles)
        first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
        return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def _angles(positions: Int[Array, "b l"], channels: int, theta: float) -> Float[Array, "b l half"]:
    frequency = theta ** (-jnp.arange(0, channels, 2, dtype=jnp.float32) / channels)
    return positions[..., None].astype(jnp.float32) * frequency


POSITIONS: dict[type, type[Positions]] = {
    Learned: LearnedPositions,
    Rotary: RotaryPositions,
    Sinusoidal: SinusoidalPositions,
    NoPositions: Positions,
}
