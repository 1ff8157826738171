"""The global order: which source row g comes from, in which epoch, and which row of it."""

from collections.abc import Sequence
from functools import lru_cache

import grain
import numpy as np

from t5x_lite.data.config import MixedSource
from t5x_lite.errors import UserError


def weights(sources: Sequence[MixedSource], tokens: Sequence[int], alpha: float) -> np.ndarray:
    """Share of each source, float64 `[sources]`, summing to one.

    Given weights are taken relative to each other. Without weights a source of n tokens has n^alpha: 1 mixes in
    proportion, 0 equally, 0.3 is mT5's (Xue et al. 2021, §3.1).

    Raises:
        UserError: some sources have a weight and others have none.
    """
    given = [source.weight for source in sources]
    known = [weight for weight in given if weight is not None]
    if known and len(known) < len(given):
        without = ", ".join(source.name for source in sources if source.weight is None)
        raise UserError(f"data.mixture: give every source a weight or none; {without} has none")
    raw = np.array(known or [float(n) ** alpha for n in tokens], np.float64)
    return raw / (raw.sum() or 1.0)


class MixtureOrder:
    """Global row g ≥ 0 → (source, epoch, row), where source n has `rows[n]`.

    The epochs of a source follow each other without end, each in an order of its own.
    """

    def __init__(self, rows: Sequence[int], shares: np.ndarray, seed: int) -> None:
        self.rows, self.seed, self._mixed = rows, seed, interleaved(shares)

    def __getitem__(self, g: int) -> tuple[int, int, int]:
        source, n = self._mixed[g] if len(self.rows) > 1 else (0, g)
        epoch, place = divmod(n, self.rows[source])
        return source, epoch, int(_shuffled(self.rows[source], (self.seed, source, epoch))[place])


@lru_cache(maxsize=64)
def _shuffled(rows: int, key: tuple[int, ...]) -> grain.MapDataset:
    """A permutation by random access: a cipher, no table in memory."""
    return grain.MapDataset.range(rows).shuffle(seed=int(np.random.SeedSequence(key).generate_state(1)[0]))


def interleaved(shares: np.ndarray) -> grain.MapDataset:
    """Global row → (source, row of that source), such that every prefix follows the weights as closely as it can."""
    endless = grain.MapDataset.range(2**62)
    pairs = [endless.map(lambda n, source=source: (source, n)) for source in range(len(shares))]
    return grain.MapDataset.mix(pairs, weights=[float(x) for x in shares])
