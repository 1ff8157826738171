"""Mixtures of sources: their shares, and the order in which they are interleaved."""

from collections import Counter

import numpy as np
import pytest

from t5x_lite.data.config import MixedSource
from t5x_lite.data.mixture import interleave_sources, source_shares
from t5x_lite.errors import UserError


def test_mixtures_follow_their_shares_at_every_prefix() -> None:
    shares = (0.5, 0.3, 0.2)
    order = interleave_sources(np.array(shares))
    counts = Counter[int]()
    for g in range(1000):
        source, n = order[g]
        assert n == counts[source]
        counts[source] += 1
        for index, share in enumerate(shares):
            assert abs(counts[index] - share * (g + 1)) < 2


def test_shares_by_size_are_mt5s() -> None:
    sources = [MixedSource(name="a"), MixedSource(name="b")]
    np.testing.assert_allclose(source_shares(sources, [900, 100], 1.0), [0.9, 0.1])
    np.testing.assert_allclose(source_shares(sources, [900, 100], 0.0), [0.5, 0.5])
    raw = np.array([900**0.3, 100**0.3])
    np.testing.assert_allclose(source_shares(sources, [900, 100], 0.3), raw / raw.sum())


def test_explicit_weights_are_relative_to_each_other_and_complete() -> None:
    weighted = [MixedSource(name="a", weight=3.0), MixedSource(name="b", weight=1.0)]
    np.testing.assert_allclose(source_shares(weighted, [1, 1], 1.0), [0.75, 0.25])
    with pytest.raises(UserError, match="b has none"):
        source_shares([weighted[0], MixedSource(name="b")], [1, 1], 1.0)
