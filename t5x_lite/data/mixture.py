"""The global order of training rows: row g comes from some source, in some epoch, as some row of that source."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Float64

from t5x_lite.data.config import MixedSource
from t5x_lite.data.source_order import SourceOrder, endless_order

LARGEST_DENOMINATOR = 10**6
"""Denominator up to which a share is taken for a fraction, as 3 of 31 is."""
TOTAL_WEIGHT = 2**62
"""Largest sum of the weights of sources as whole numbers. Other shares are rounded up to multiples of its inverse."""
MIXTURE_VERSION = 2
"""Version of the order of the sources in a mixture, which a run keeps from its first step to its last."""


def source_shares(sources: Sequence[MixedSource], sizes: Sequence[int], alpha: float) -> Float64[np.ndarray, "sources"]:
    """Return the share that each source gets, of rows or of tokens; the shares sum to one.

    Explicit weights are relative to each other. Without weights the share of a source of n tokens is proportional to
    n^alpha: 1 mixes in proportion to size, 0 equally, and 0.3 is mT5's choice (Xue et al. 2021, §3.1).

    Args:
        sources: the sources of a mixture.
        sizes: tokens of each source.
        alpha: the exponent.
    """
    weights = [source.weight for source in sources if source.weight is not None]
    if not weights:
        weights = [float(size) ** alpha for size in sizes]
    raw = np.array(weights, np.float64)
    return raw / (raw.sum() or 1.0)


def shares_of_rows(
    shares: Float64[np.ndarray, "sources"], tokens_per_row: Sequence[float]
) -> Float64[np.ndarray, "sources"]:
    """Return the shares of rows that give each source its share of tokens (`data.mixture_by=tokens`).

    Args:
        shares: share of tokens of each source.
        tokens_per_row: mean number of tokens in a row of each source.
    """
    rows_per_token = 1 / np.maximum(np.array(tokens_per_row, np.float64), 1.0)
    weighted = shares * rows_per_token
    return weighted / weighted.sum()


class Interleaving:
    """Divides places g ≥ 0 among sources, so that every prefix follows the shares as closely as possible.

    The first source takes its share of the places, evenly spaced; the next takes its share of those that are left, and
    so on. Random access costs one multiplication for each source.

    Args:
        shares: share of each source; a source without a share gets no place.
    """

    def __init__(self, shares: Float64[np.ndarray, "sources"]) -> None:
        self._weights = _integer_weights(shares.tolist())

    def counts(self, places: int) -> list[int]:
        """Return how many of the first places each source has."""
        counts = []
        left = places
        weight_left = sum(self._weights)
        for weight in self._weights:
            left_after = left
            if weight:
                left_after = left * (weight_left - weight) // weight_left
            counts.append(left - left_after)
            left = left_after
            weight_left -= weight
        return counts

    def __getitem__(self, g: int) -> tuple[int, int]:
        """Return the source that has a place, and how many places before it the source has."""
        before = self.counts(g)
        after = self.counts(g + 1)
        source = next(number for number, count in enumerate(before) if after[number] > count)
        return source, before[source]


def _integer_weights(shares: Sequence[float]) -> list[int]:
    """Return whole numbers in the ratios of the shares, exactly where these are fractions of small numbers."""
    fractions = [Fraction(share).limit_denominator(LARGEST_DENOMINATOR) for share in shares]
    denominator = math.lcm(*(fraction.denominator for fraction in fractions))
    pairs = zip(fractions, shares, strict=True)
    are_near = all(abs(float(fraction) - share) <= 1e-9 * share for fraction, share in pairs)
    if are_near and denominator <= TOTAL_WEIGHT:
        return [int(fraction * denominator) for fraction in fractions]
    return [math.ceil(share * TOTAL_WEIGHT) for share in shares]


class MixtureOrder:
    """Maps row g ≥ 0 of a global order to (source, epoch, row of the source).

    Args:
        sources: the order of each source; None for one that is not drawn.
        interleaving: the source of each row.
        first: the number g of the first row.
        drawn: rows that each source gave before this one.
    """

    def __init__(
        self,
        sources: Sequence[SourceOrder | None],
        interleaving: Interleaving,
        first: int = 0,
        drawn: Sequence[int] | None = None,
    ) -> None:
        self._sources = sources
        self._interleaving = interleaving
        self._first = first
        self._drawn = drawn or [0] * len(sources)

    def __getitem__(self, g: int) -> tuple[int, int, int]:
        source, n = self._interleaving[g - self._first]
        order = self._sources[source]
        assert order is not None
        epoch, row = order[self._drawn[source] + n]
        return source, epoch, row


def mix_endless(row_counts: Sequence[int], shares: Float64[np.ndarray, "sources"], seed: int) -> MixtureOrder:
    """Return the order of rows whose shares never change.

    Args:
        row_counts: rows of each source.
        shares: share of each source in the global order.
        seed: seed of the random orders.
    """
    sources = [endless_order(rows, (seed, source)) for source, rows in enumerate(row_counts)]
    return MixtureOrder(sources, Interleaving(shares))
