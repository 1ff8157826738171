"""Scaling of rotary positions for longer contexts: longer wavelengths, and for YaRN larger scores."""

import math
from abc import abstractmethod
from collections.abc import Iterator

from jaxtyping import Float

from t5x_lite.arrays import Array
from t5x_lite.schema import Config, setting
from t5x_lite.schema import Int as Integer


class RopeScaling(Config):
    """A change of the wavelengths. A scaling is one class of this kind and one entry in `ROPE_SCALINGS`."""

    @abstractmethod
    def scale_frequencies(self, frequencies: Float[Array, "half"], theta: float) -> Float[Array, "half"]:
        """Return the frequency of each pair of channels, given those of `theta`, the base of their geometric series."""

    @property
    def scale(self) -> float:
        """Return the factor on rotated queries and keys."""
        return 1.0

    @property
    def score_scale(self) -> float:
        """Return the factor on attention scores, which also are products of channels that are not rotated."""
        return 1.0

    @property
    def max_length(self) -> int | None:
        """Return the longest row that the scaling can serve; None: any."""
        return None


class LinearScaling(RopeScaling):
    """All wavelengths times one factor, which interpolates positions (Chen et al. 2023)."""

    factor: float = setting(..., "factor on all wavelengths", gt=0)

    def scale_frequencies(self, frequencies: Float[Array, "half"], theta: float) -> Float[Array, "half"]:
        """Return the frequencies divided by `factor`."""
        return frequencies / self.factor


class DynamicScaling(RopeScaling):
    """Dynamic NTK scaling: a base that grows with the length of the context (Peng et al. 2023, §3.3).

    Up to the original length nothing changes. For longer contexts Transformers computes the base anew for the length so
    far, and leaves keys in its cache as they were rotated by earlier bases; decoding then differs from a pass over the
    whole text. Here one base serves all rows and the cache: that of contexts of `length` tokens, and longer rows are
    refused.
    """

    factor: float = setting(..., "factor on the slowest wavelength per original length of context", ge=1)
    original_length: Integer = setting(..., "context before the scaling", unit="tokens", ge=1)
    length: Integer | None = setting(
        None, "longest context, which the base is computed for; null takes the original one", unit="tokens", ge=1
    )

    def problems(self) -> Iterator[str]:
        """Yield a context below the original one."""
        if self.length is not None and self.length < self.original_length:
            yield f"dynamic: length {self.length} is below original_length {self.original_length}; leave it out"

    def scale_frequencies(self, frequencies: Float[Array, "half"], theta: float) -> Float[Array, "half"]:
        """Return the frequencies of the base theta · (factor · length / original - factor + 1)^(k / (k - 2))."""
        import jax.numpy as jnp

        growth = self.factor * self.max_length / self.original_length - (self.factor - 1)
        half = len(frequencies)
        # The base to the power of -2i/k, for i from 0 to half - 1 and k = 2 · half.
        exponents = jnp.arange(half, dtype=jnp.float32) / max(half - 1, 1)
        return frequencies * growth**-exponents

    @property
    def max_length(self) -> int:
        """Return `length`, or the original length."""
        return self.length or self.original_length


class Llama3Scaling(RopeScaling):
    """Longer wavelengths for longer contexts (Llama 3.1, Grattafiori et al. 2024, §3.4.2 and its code).

    Wavelengths above original_length / low_freq_factor are `factor` times as long, those below original_length /
    high_freq_factor are unchanged.
    """

    factor: float = setting(8.0, "factor on long wavelengths", gt=1)
    low_freq_factor: float = setting(
        1.0, "turns within the original length below which a wavelength has the whole factor", gt=0
    )
    high_freq_factor: float = setting(4.0, "turns above which it is unchanged", gt=0)
    original_length: Integer = setting(8192, "context before the scaling", unit="tokens", ge=1)

    def scale_frequencies(self, frequencies: Float[Array, "half"], theta: float) -> Float[Array, "half"]:
        """Return the frequencies of slow rotations divided by `factor`, fast ones as they are, linear in between."""
        import jax.numpy as jnp

        turns = self.original_length * frequencies / (2 * math.pi)
        unchanged = jnp.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0.0, 1.0)
        return (1 - unchanged) * frequencies / self.factor + unchanged * frequencies


class YarnScaling(RopeScaling):
    """YaRN (Peng et al. 2023, §3.2 to §3.4): a ramp over pairs of channels, and a larger scale of scores.

    Pairs that turn more than `beta_fast` times within the original length are unchanged, the wavelengths of those that
    turn less than `beta_slow` times are `factor` times as long.
    """

    factor: float = setting(..., "factor on the wavelengths of slow pairs", gt=0)
    original_length: Integer = setting(..., "context before the scaling", unit="tokens", ge=1)
    beta_fast: float = setting(32.0, "turns above which a pair is unchanged", gt=0)
    beta_slow: float = setting(1.0, "turns below which a pair has the whole factor", gt=0)
    attention_factor: float | None = setting(
        None,
        "factor on rotated queries and keys; null takes 0.1 · mscale · ln(factor) + 1 over the same of mscale_all_dim",
        gt=0,
        source="§3.4",
    )
    mscale: float = setting(1.0, "growth of rotated channels with the logarithm of `factor`", ge=0)
    mscale_all_dim: float = setting(
        0.0, "the same of all channels of queries and keys, rotated or not", ge=0, source="DeepSeek-V2's code"
    )
    truncate: bool = setting(True, "the ramp begins and ends at whole numbers of pairs, as in YaRN's code")

    def scale_frequencies(self, frequencies: Float[Array, "half"], theta: float) -> Float[Array, "half"]:
        """Return frequencies that change from unchanged to divided by `factor` along the pairs of channels."""
        import jax.numpy as jnp

        half = len(frequencies)
        first = self._pair_of_turns(self.beta_fast, half, theta)
        last = self._pair_of_turns(self.beta_slow, half, theta)
        if self.truncate:
            first = math.floor(first)
            last = math.ceil(last)
        first = max(first, 0)
        last = min(last, 2 * half - 1)
        if first == last:
            last += 0.001
        scaled = jnp.clip((jnp.arange(half, dtype=jnp.float32) - first) / (last - first), 0.0, 1.0)
        return scaled * frequencies / self.factor + (1 - scaled) * frequencies

    def _pair_of_turns(self, turns: float, half: int, theta: float) -> float:
        """Return the number of the pair, perhaps a fraction, that turns so often within the original length."""
        return half * math.log(self.original_length / (turns * 2 * math.pi)) / math.log(theta)

    @property
    def scale(self) -> float:
        """Return `attention_factor`, or its default."""
        if self.attention_factor is not None:
            return self.attention_factor
        return self._growth(self.mscale) / self._growth(self.mscale_all_dim)

    @property
    def score_scale(self) -> float:
        """Return the square of the factor on all channels: queries and keys both have it."""
        return self._growth(self.mscale_all_dim) ** 2

    def _growth(self, mscale: float) -> float:
        """Return 0.1 · mscale · ln(factor) + 1; 1 where nothing is scaled."""
        return 0.1 * mscale * math.log(max(self.factor, 1.0)) + 1.0


ROPE_SCALINGS: dict[str, type[RopeScaling]] = {
    "linear": LinearScaling,
    "dynamic": DynamicScaling,
    "llama3": Llama3Scaling,
    "yarn": YarnScaling,
}
