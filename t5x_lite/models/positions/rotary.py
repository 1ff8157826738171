"""Rotary positions (Su et al. 2021)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from jaxtyping import Float, Int
from pydantic import model_validator

from t5x_lite.arrays import Array
from t5x_lite.models.positions.encoding import Place, PositionEncoding
from t5x_lite.models.positions.rope_scaling import ROPE_SCALINGS, RopeScaling
from t5x_lite.schema import OneOf, setting

if TYPE_CHECKING:
    from t5x_lite.models.config import ModelConfig


NAMES_OF_0_2 = {
    "low": "low_freq_factor",
    "high": "high_freq_factor",
    "fast": "beta_fast",
    "slow": "beta_slow",
    "whole_pairs": "truncate",
}
"""Settings of `scaling` by the names that they had in version 0.2."""


class Rotary(PositionEncoding):
    """Queries and keys rotated by an angle that grows with position.

    The two channels of pair i are rotated by p / theta^(2i/k) (§3.2.2). They are channel i of the first half and of the
    second half of a head, or neighbours where channels are interleaved.
    """

    theta: float = setting(
        10000.0, "base of the geometric series of wavelengths", gt=0, source="Su et al. 2021, §3.2.2"
    )
    share: float = setting(
        1.0, "share of a head's channels that are rotated, the first of them", gt=0, le=1, source="GPT-NeoX: 0.25"
    )
    interleaved: bool = setting(False, "pairs are channels 2i and 2i + 1", source="Su et al. 2021, §3.2.2; DeepSeek")
    scaling: Annotated[RopeScaling | None, OneOf(ROPE_SCALINGS)] = setting(
        None, "how wavelengths are scaled for a longer context"
    )

    @model_validator(mode="before")
    @classmethod
    def _read_names_of_0_2(cls, values: Any) -> Any:
        """Accept the names that `scaling` and its settings had in version 0.2, in the configs of its runs."""
        if not isinstance(values, dict) or "stretch" not in values:
            return values
        values = {**values, "scaling": values["stretch"]}
        del values["stretch"]
        if isinstance(values["scaling"], dict):
            values["scaling"] = {kind: _rename(settings) for kind, settings in values["scaling"].items()}
        return values

    @property
    def place(self) -> Place:
        """Return `stack`: the rotation is the same in every layer."""
        return "stack"

    @property
    def max_length(self) -> int | None:
        """Return the longest row that the scaling can serve."""
        if self.scaling is None:
            return None
        return self.scaling.max_length

    @property
    def max_length_setting(self) -> str:
        """Return the length of a dynamic scaling."""
        return "model.positions.rotary.scaling.dynamic.length"

    def rotate(self, x: Float[Array, "b l h k"], positions: Int[Array, "b l"]) -> Float[Array, "b l h k"]:
        """Rotate each pair of channels."""
        import jax.numpy as jnp

        rotated = self.rotated_channels(x.shape[-1])
        rates = frequencies(rotated, self.theta)
        if self.scaling is not None:
            rates = self.scaling.scale_frequencies(rates, self.theta)
        angles = (positions[..., None].astype(jnp.float32) * rates)[:, :, None, :]
        cos = jnp.cos(angles)
        sin = jnp.sin(angles)
        if self.scaling is not None and self.scaling.scale != 1:
            cos *= self.scaling.scale
            sin *= self.scaling.scale
        channels = x[..., :rotated].astype(jnp.float32)
        if self.interleaved:
            first = channels[..., ::2]
            second = channels[..., 1::2]
        else:
            first, second = jnp.split(channels, 2, axis=-1)
        halves = [(first * cos - second * sin).astype(x.dtype), (second * cos + first * sin).astype(x.dtype)]
        if self.interleaved:
            rotated_pairs = jnp.stack(halves, axis=-1).reshape(channels.shape)
        else:
            rotated_pairs = jnp.concatenate(halves, axis=-1)
        return jnp.concatenate([rotated_pairs, x[..., rotated:]], axis=-1)

    @property
    def score_scale(self) -> float:
        """Return the factor of the scaling."""
        if self.scaling is None:
            return 1.0
        return self.scaling.score_scale

    def rotated_channels(self, head_dim: int) -> int:
        """Return the number of channels that are rotated: `share` of them, rounded down as in GPT-NeoX's code."""
        return int(head_dim * self.share)

    def model_problems(self, model: "ModelConfig") -> Iterator[str]:
        """Yield an odd number of rotated channels, or none."""
        rotated = self.rotated_channels(model.head_dim)
        if rotated % 2 or not rotated:
            share = "" if self.share == 1 else f" times share {self.share}"
            yield f"rotary positions need an even head_dim{share}, found {rotated} of {model.head_dim}"


def frequencies(channels: int, theta: float) -> Float[Array, "half"]:
    """Return theta^(-2i/channels) for each pair i of channels."""
    import jax.numpy as jnp

    return theta ** (-jnp.arange(0, channels, 2, dtype=jnp.float32) / channels)


def _rename(settings: Any) -> Any:
    """Return settings of `scaling` under their names of today."""
    if not isinstance(settings, dict):
        return settings
    return {NAMES_OF_0_2.get(name, name): value for name, value in settings.items()}
