"""Attention kinds: which keys a query may look at. One class a kind, one entry in `ATTENTION`.

A kind is pure arithmetic on positions, so that the same definition serves NumPy tests, the dense computation and the
kernels; it imports no JAX.
"""

from typing import Any

from t5x_lite.schema import Config


class Dense(Config):
    """Every key of the segment (and, in a decoder, no later one)."""

    def allowed(self, query: Any, key: Any) -> Any:
        """Boolean mask for broadcastable integer positions `query` and `key`; causality is not decided here."""
        return abs(query - key) >= 0


ATTENTION: dict[str, type[Config]] = {"dense": Dense}
