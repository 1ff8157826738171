"""Strided attention (Child et al. 2019, §4.2)."""

from t5x_lite.models.attention.kinds.factorised import Factorised
from t5x_lite.models.attention.kinds.shapes import BlockBand, BooleanArray, Part, PositionArray, StridedColumns


class Strided(Factorised):
    """Near: the last `stride` keys and the query's own. Far: every `stride`-th key from the query's position."""

    @property
    def max_lookback(self) -> int | None:
        """Return the size of the near set where all heads take it."""
        if self.share == "near":
            return self.stride + 1
        return None

    def near_and_far(self, *, causal: bool) -> tuple[Part, Part]:
        """Return A^(1), a band that reaches one block of `stride` back, and A^(2), columns (§4.2)."""
        after = 0 if causal else 1

        def near(query: PositionArray, key: PositionArray) -> BooleanArray:
            return abs(query - key) <= self.stride

        def far(query: PositionArray, key: PositionArray) -> BooleanArray:
            return (query - key) % self.stride == 0

        return Part(BlockBand(self.stride, 1, after), near), Part(StridedColumns(self.stride), far)
