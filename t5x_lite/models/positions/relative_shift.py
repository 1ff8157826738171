"""Scores of queries with distances, moved to the pairs of queries and keys (Dai et al. 2019, appendix B)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from t5x_lite.arrays import Array

if TYPE_CHECKING:
    from t5x_lite.models.attention.context import TokenPositions


@dataclass(frozen=True)
class PairOffsets:
    """The offsets, key minus query, that occur between some queries and some keys.

    Attributes:
        offsets: each of them once, in ascending order; or of one query, that of each key.
        query_places: distance of each query from the first, in steps of `offsets`; None for one query.
        key_places: distance of each key from the first.
    """

    offsets: Int[Array, "p"]
    query_places: Int[np.ndarray, "l"] | None = None
    key_places: Int[np.ndarray, "m"] | None = None

    @classmethod
    def between(cls, queries: "TokenPositions", keys: "TokenPositions") -> "PairOffsets":
        """Return the offsets between queries and keys; those in between that do not occur are among them.

        Raises:
            ValueError: how far they are apart is not known while tracing.
        """
        if len(queries.index) == 1:
            return cls(keys.index - queries.index)
        query_places = queries.distances
        key_places = keys.distances
        step = max(np.gcd.reduce(np.concatenate([query_places, key_places])), 1)
        query_places = query_places // step
        key_places = key_places // step
        least = -query_places.max()
        # The shift wants one more than there are.
        steps = np.arange(least, key_places.max() + 2)
        return cls(keys.index.min() - queries.index.min() + step * steps, query_places, key_places)

    def at_pairs(self, scores: Float[Array, "b h l p"]) -> Float[Array, "b h l m"]:
        """Return the score of each query with the offset of each key from scores with all offsets."""
        import jax.numpy as jnp

        if self.query_places is None or self.key_places is None:
            return scores
        b, h, l, p = scores.shape
        if not np.array_equal(self.query_places, np.arange(l)):
            places = self.key_places[None, :] - self.query_places[:, None] + self.query_places.max()
            return jnp.take_along_axis(scores, places[None, None], axis=3)
        # Row i + 1 begins one offset lower than row i: in rows that are one shorter they are below each other.
        below_each_other = scores.reshape(b, h, l * p)[:, :, l - 1 : l - 1 + l * (p - 1)].reshape(b, h, l, p - 1)
        keys = self.key_places.max() + 1
        if np.array_equal(self.key_places, np.arange(keys)):
            return below_each_other[..., :keys]
        return below_each_other[..., self.key_places]
