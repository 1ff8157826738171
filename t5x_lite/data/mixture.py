"""The global order of training rows: row g comes from some source, in some epoch, as some row of that source."""

from collections.abc import Sequence
from functools import lru_cache, partial

import grain
import numpy as np
from jaxtyping import Float64

from t5x_lite.data.config import MixedSource
from t5x_lite.errors import UserError


def source_shares(sources: Sequence[MixedSource], sizes: Sequence[int], alpha: float) -> Float64[np.ndarray, "sources"]:
    """Return the share that each source gets, of rows or of tokens; the shares sum to one.

    Explicit weights are relative to each other. Without weights the share of a source of n tokens is proportional to
    n^alpha: 1 mixes in proportion to size, 0 equally, and 0.3 is mT5's choice (Xue et al. 2021, §3.1).

    Args:
        sources: the sources of a mixture.
        sizes: tokens of each source.
        alpha: the exponent.

    Raises:
        UserError: some sources have a weight and others have none.
    """
    weights = [source.weight for source in sources if source.weight is not None]
    if weights and len(weights) < len(sources):
        unweighted = ", ".join([source.name for source in sources if source.weight is None])
        raise UserError(f"data.mixture: give every source a weight or none; {unweighted} has none")
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


class MixtureOrder:
    """Maps a global row g ≥ 0 to (source, epoch, row of the source).

    The epochs of a source follow each other without end, each in a different random order.

    Args:
        row_counts: rows of each source.
        shares: share of each source in the global order.
        seed: seed of the random orders.
    """

    def __init__(self, row_counts: Sequence[int], shares: Float64[np.ndarray, "sources"], seed: int) -> None:
        self.row_counts = row_counts
        self.seed = seed
        self._interleaved = interleave_sources(shares)

    def __getitem__(self, g: int) -> tuple[int, int, int]:
        if len(self.row_counts) == 1:
            return self._shuffle_epoch(0, g)
        source, n = self._interleaved[g]
        return self._shuffle_epoch(source, n)

    def _shuffle_epoch(self, source: int, n: int) -> tuple[int, int, int]:
        """Return source, epoch and row of the n-th row that a source gives."""
        row_count = self.row_counts[source]
        epoch, position = divmod(n, row_count)
        permutation = _permutation(row_count, (self.seed, source, epoch))
        return source, epoch, int(permutation[position])


@lru_cache(maxsize=64)
def _permutation(size: int, key: tuple[int, ...]) -> grain.MapDataset:
    """Return a random permutation with random access: Grain uses a cipher, so there is no table in memory."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    return grain.MapDataset.range(size).shuffle(seed=seed)


def interleave_sources(shares: Float64[np.ndarray, "sources"]) -> grain.MapDataset:
    """Map a global row to (source, n), so that every prefix follows the shares as closely as possible.

    n counts the rows that come from the source.
    """
    endless = grain.MapDataset.range(2**62)
    numbered = [endless.map(partial(_pair, source)) for source in range(len(shares))]
    return grain.MapDataset.mix(numbered, weights=shares.tolist())


def _pair(source: int, n: int) -> tuple[int, int]:
    return source, n
