"""Fixed attention: blocks and their summaries (Child et al. 2019, §4.2)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from t5x_lite.models.attention.kinds.factorised import Factorised
from t5x_lite.models.attention.kinds.shapes import BlockBand, BooleanArray, Part, PositionArray, SharedKeys
from t5x_lite.schema import Int, setting

if TYPE_CHECKING:
    from t5x_lite.models.config import ModelConfig


class Fixed(Factorised):
    """Near: the keys of the query's own block of `stride`. Far: the last `summary` positions of every block."""

    summary: Int = setting(
        8, "positions of a block that all later queries attend to", unit="tokens", ge=1, source="Child, §4.2"
    )

    @property
    def allows_empty_rows(self) -> bool:
        """Before the first summary the far set is empty."""
        return self.share in {"far", "heads"}

    def near_and_far(self, *, causal: bool) -> tuple[Part, Part]:
        """Return A^(1), blocks that attend to themselves, and A^(2), the summaries of all blocks (§4.2)."""
        first = self.stride - self.summary

        def near(query: PositionArray, key: PositionArray) -> BooleanArray:
            return query // self.stride == key // self.stride

        def far(query: PositionArray, key: PositionArray) -> BooleanArray:
            return (key % self.stride >= first) & (abs(query - key) >= 0)

        summaries = SharedKeys(first, self.stride, self.stride)
        return Part(BlockBand(self.stride, 0, 0), near), Part(summaries, far)

    def model_problems(self, model: "ModelConfig") -> Iterator[str]:
        """Yield a summary longer than its block."""
        yield from super().model_problems(model)
        if self.summary > self.stride:
            yield f"attention fixed: summary {self.summary} is more than its stride {self.stride}"
