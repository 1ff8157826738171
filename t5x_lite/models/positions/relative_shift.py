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
        query_steps: distance of each query from the first, in steps of `offsets`; None for one query.
        key_steps: distance of each key from the first.
    """

    offsets: Int[Array, "p"]
    query_steps: Int[np.ndarray, "l"] | None = None
    key_steps: Int[np.ndarray, "m"] | None = None

    @classmethod
    def between(cls, queries: "TokenPositions", keys: "TokenPositions") -> "PairOffsets":
        """Return the offsets between queries and keys; those in between that do not occur are among them.

        Raises:
            ValueError: how far they are apart is not known while tracing.
        """
        if len(queries.index) == 1:
            return cls(keys.index - queries.index)
        query_steps = queries.distances
        key_steps = keys.distances
        step = max(np.gcd.reduce(np.concatenate([query_steps, key_steps])), 1)
        query_steps = query_steps // step
        key_steps = key_steps // step
        least = -query_steps.max()
        # `at_pairs` drops a column, so one more offset is computed.
        steps = np.arange(least, key_steps.max() + 2)
        return cls(keys.smallest_index - queries.smallest_index + step * steps, query_steps, key_steps)

    def at_pairs(self, scores: Float[Array, "b h l p"]) -> Float[Array, "b h l m"]:
        """Return the score of each query with the offset of each key from scores with all offsets."""
        import jax.numpy as jnp

        if self.query_steps is None or self.key_steps is None:
            return scores
        b, h, l, p = scores.shape
        if not np.array_equal(self.query_steps, np.arange(l)):
            places = self.key_steps[None, :] - self.query_steps[:, None] + self.query_steps.max()
            return jnp.take_along_axis(scores, places[None, None], axis=3)
        # Skew: in rows that are one entry shorter, column j is the offset to key j (Dai et al. 2019, appendix B).
        flat_scores = scores.reshape(b, h, l * p)
        skewed = flat_scores[:, :, l - 1 : l - 1 + l * (p - 1)].reshape(b, h, l, p - 1)
        keys = self.key_steps.max() + 1
        if np.array_equal(self.key_steps, np.arange(keys)):
            return skewed[..., :keys]
        return skewed[..., self.key_steps]
