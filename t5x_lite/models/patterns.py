"""Attention kinds: which keys a query may look at. One class a kind, one entry in `ATTENTION`.

A kind is pure arithmetic on positions, so that the same definition serves NumPy tests, the dense computation and the
kernels; it imports no JAX.
"""

from typing import Any

from t5x_lite.schema import Config, Int, setting


class Dense(Config):
    """Every key of the segment (and, in a decoder, no later one)."""

    def allowed(self, query: Any, key: Any) -> Any:
        """Boolean mask for broadcastable integer positions `query` and `key`; causality is not decided here."""
        return abs(query - key) >= 0

    def pairs(self, length: int, *, causal: bool) -> float:
        """Pairs of query and key in a row of `length`, for counting FLOPs; a causal square counts half."""
        return length * length / (2 if causal else 1)


class Local(Config):
    """A band: keys less than `window` away, the query's own place counted (Child et al. 2019; GPT-Neo, Mistral)."""

    window: Int = setting(256, "keys that a causal query sees, itself included", unit="tokens", ge=1)

    def allowed(self, query: Any, key: Any) -> Any:
        """See `Dense.allowed`; in an encoder the band reaches as far to the right as to the left."""
        return abs(query - key) < self.window

    def pairs(self, length: int, *, causal: bool) -> float:
        """See `Dense.pairs`: a band without its corners."""
        window = min(self.window, length)
        return (window * length - window * window / 2) * (1 if causal else 2)


ATTENTION: dict[str, type[Config]] = {"dense": Dense, "local": Local}
