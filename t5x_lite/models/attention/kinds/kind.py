"""The interface of an attention kind: which keys a query may attend to.

A kind is arithmetic on positions, so that one definition serves NumPy tests, the dense form, and every kernel. It
imports no JAX.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from t5x_lite.models.attention.kinds.shapes import BooleanArray, Part, PositionArray
from t5x_lite.schema import Config

if TYPE_CHECKING:
    from t5x_lite.models.config import ModelConfig

SAMPLED_QUERIES = 2048
"""Queries of a row whose allowed keys are counted."""


class AttentionKind(Config):
    """An attention kind. The defaults are those of a kind that its mask alone defines."""

    @property
    def max_lookback(self) -> int | None:
        """Return the number of newest keys that a causal query can attend to; None: all."""
        return None

    @property
    def allows_empty_rows(self) -> bool:
        """A query may have no key at all; its output is then 0."""
        return False

    @abstractmethod
    def allowed(self, query: PositionArray, key: PositionArray) -> BooleanArray:
        """Return a mask over broadcastable positions of queries and keys. Causality is not part of it."""

    def parts(self, *, causal: bool) -> tuple[Part, ...]:
        """Return disjoint parts that together are `allowed`; none where the whole matrix has to be computed."""
        return ()

    def head_groups(self, heads: int) -> tuple[tuple["AttentionKind", int], ...]:
        """Return the kind of each group of heads, in order, and the number of heads in the group."""
        return ((self, heads),)

    def pairs(self, length: int, *, causal: bool) -> float:
        """Return the allowed query-key pairs in a row of `length`, the mean over heads, for counting FLOPs.

        They are counted; in long rows for a sample of the queries.
        """
        query = np.linspace(0, length - 1, min(length, SAMPLED_QUERIES)).round().astype(int)[:, None]
        key = np.arange(length)
        shares = []
        for kind, _ in self.head_groups(2):
            mask = kind.allowed(query, key)
            if causal:
                mask = mask & (query >= key)
            shares.append(np.mean(mask))
        return float(np.mean(shares)) * length * length

    def model_problems(self, model: "ModelConfig") -> Iterator[str]:
        """Yield what a model has that this kind does not work with."""
        yield from ()
