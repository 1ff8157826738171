"""Sources mixed by weight: which source row g of the global order comes from, and which of its rows it is."""

from collections.abc import Sequence

import grain
import numpy as np

from t5x_lite.config import MixedSource
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


class Interleaving:
    """Global row → (source, row of that source), such that every prefix follows the weights as closely as it can."""

    def __init__(self, shares: np.ndarray) -> None:
        self._mixed = grain.MapDataset.mix([_Rows(n) for n in range(len(shares))], weights=[float(x) for x in shares])

    def __getitem__(self, row: int) -> tuple[int, int]:
        return self._mixed[row]


class _Rows(grain.MapDataset):
    """An endless source whose row n is (source, n)."""

    def __init__(self, source: int) -> None:
        super().__init__()
        self._source = source

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, row: int) -> tuple[int, int]:  # type: ignore[override]
        return self._source, row
