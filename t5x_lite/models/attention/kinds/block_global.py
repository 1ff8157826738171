"""Blocks with global tokens, for encoders (Beltagy et al. 2020, §3.1; Zaheer et al. 2020, §2)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from t5x_lite.models.attention.kinds.kind import AttentionKind
from t5x_lite.models.attention.kinds.shapes import (
    BlockBand,
    BooleanArray,
    FirstQueries,
    Part,
    PositionArray,
    SharedKeys,
)
from t5x_lite.schema import Int, setting

if TYPE_CHECKING:
    from t5x_lite.models.config import ModelConfig


class BlockGlobal(AttentionKind):
    """Blocks attend to their neighbours; the first `globals` tokens of a row attend to all and all attend to them.

    Big Bird without its random blocks.
    """

    block: Int = setting(64, "tokens of a block", unit="tokens", ge=1)
    neighbours: Int = setting(1, "blocks on each side that a block attends to", unit="blocks", ge=0)
    globals: Int = setting(1, "first tokens of a row, which attend to all and to which all attend", unit="tokens", ge=1)

    def allowed(self, query: PositionArray, key: PositionArray) -> BooleanArray:
        """Allow pairs in neighbouring blocks, and pairs with a global token."""
        return self._in_band(query, key) | (key < self.globals) | (query < self.globals)

    def _in_band(self, query: PositionArray, key: PositionArray) -> BooleanArray:
        return abs(query // self.block - key // self.block) <= self.neighbours

    def parts(self, *, causal: bool) -> tuple[Part, ...]:
        """Return the band, the global keys outside it, and what global queries attend to outside both."""

        def global_keys(query: PositionArray, key: PositionArray) -> BooleanArray:
            return (key < self.globals) & ~self._in_band(query, key)

        def global_queries(query: PositionArray, key: PositionArray) -> BooleanArray:
            return (query < self.globals) & (key >= self.globals) & ~self._in_band(query, key)

        after = 0 if causal else self.neighbours
        return (
            Part(BlockBand(self.block, self.neighbours, after), self._in_band),
            Part(SharedKeys(0, self.globals), global_keys),
            Part(FirstQueries(self.globals), global_queries),
        )

    def model_problems(self, model: "ModelConfig") -> Iterator[str]:
        """Yield a model with a decoder: global tokens attend to later ones."""
        if not model.is_encoder_only:
            yield "attention block_global is for encoders: its global tokens attend to all that follow"
