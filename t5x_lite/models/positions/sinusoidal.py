"""Sinusoidal positions (Vaswani et al. 2017, §3.5)."""

from typing import TYPE_CHECKING

from jaxtyping import Float, Int

from t5x_lite.arrays import Array
from t5x_lite.models.positions.encoding import PositionEncoding

if TYPE_CHECKING:
    from t5x_lite.models.positions.module import Positions

WAVELENGTH_BASE = 10000.0
"""Base of the geometric series of wavelengths (§3.5)."""


class Sinusoidal(PositionEncoding):
    """Fixed sines, then cosines, of p / 10000^(2i/d), added to the token embedding."""

    def encode(
        self, parameters: "Positions", x: Float[Array, "b l d"], positions: Int[Array, "b l"]
    ) -> Float[Array, "b l d"]:
        """Add the sines and cosines of each position."""
        return x + sinusoids(positions, x.shape[-1]).astype(x.dtype)


def sinusoids(positions: Int[Array, "*shape"], channels: int) -> Float[Array, "*shape d"]:
    """Return the sines, then the cosines, of each position."""
    import jax.numpy as jnp

    from t5x_lite.models.positions.rotary import frequencies

    angles = positions[..., None].astype(jnp.float32) * frequencies(channels, WAVELENGTH_BASE)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
