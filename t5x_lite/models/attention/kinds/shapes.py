"""Shapes of query-key pairs: sets of pairs that can be computed without the whole matrix of scores.

A shape says which pairs are computed; an attention kind says which of them are allowed. The computation of each shape
is in `blocked.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from t5x_lite.integers import ceil_div

PositionArray: TypeAlias = Any
"""Integer positions as a NumPy or a JAX array, or as a Python integer."""
BooleanArray: TypeAlias = Any
"""A boolean NumPy or JAX array."""
AllowedPairs = Callable[[PositionArray, PositionArray], BooleanArray]
"""A function from broadcastable positions of queries and keys to a mask."""


@dataclass(frozen=True)
class BlockBand:
    """Queries of each block attend to keys of their own block and of its neighbours.

    A multiple of `size` covers the same pairs and more.

    Attributes:
        size: tokens of a block.
        before, after: neighbouring blocks on each side.
    """

    size: int
    before: int
    after: int

    def pairs(self, length: int) -> int:
        """Return the number of query-key pairs that are computed."""
        keys_per_query = min(self.size * (1 + self.before + self.after), length)
        return length * keys_per_query


@dataclass(frozen=True)
class StridedColumns:
    """Positions that are a multiple of `stride` apart attend to each other."""

    stride: int

    def pairs(self, length: int) -> int:
        """Return the number of query-key pairs that are computed."""
        return length * ceil_div(length, self.stride)


@dataclass(frozen=True)
class SharedKeys:
    """All queries attend to the same keys: those at positions from `first` to `stop` of every `period`.

    A period of None is the whole row.
    """

    first: int
    stop: int
    period: int | None = None

    def indices(self, length: int) -> list[int]:
        """Return the positions of the keys in a row of `length`."""
        indices = []
        for index in range(length):
            phase = index
            if self.period is not None:
                phase = index % self.period
            if self.first <= phase < self.stop:
                indices.append(index)
        return indices

    def pairs(self, length: int) -> int:
        """Return the number of query-key pairs that are computed."""
        return length * len(self.indices(length))


@dataclass(frozen=True)
class FirstQueries:
    """The first `count` queries attend to all keys."""

    count: int

    def pairs(self, length: int) -> int:
        """Return the number of query-key pairs that are computed."""
        return self.count * length


PairShape = BlockBand | StridedColumns | SharedKeys | FirstQueries


@dataclass(frozen=True)
class Part:
    """The `allowed` pairs among those that a shape covers."""

    shape: PairShape
    allowed: AllowedPairs
