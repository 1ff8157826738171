"""LongT5's transient global attention: a window, and the sums of blocks (Guo et al. 2022, §3.2.2)."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from t5x_lite.models.attention.kinds.kind import AttentionKind
from t5x_lite.models.attention.kinds.shapes import BlockBand, BooleanArray, Part, PositionArray
from t5x_lite.models.positions.relative import Relative
from t5x_lite.schema import Int, setting

if TYPE_CHECKING:
    from t5x_lite.models.config import ModelConfig


class TransientGlobal(AttentionKind):
    """Keys less than `window` positions away, and one global token for each `block` tokens of the document.

    A global token is the normalised sum of the states of its block. It is computed anew in every layer. Tokens after
    the last whole block belong to that block; a document shorter than a block has no global token.
    """

    window: Int = setting(
        128, "keys on each side that a query attends to, itself included", unit="tokens", ge=1, source="Guo 2022, §4.1"
    )
    block: Int = setting(16, "tokens that make up a global token", unit="tokens", ge=1, source="Guo 2022, §4.1")

    def allowed(self, query: PositionArray, key: PositionArray) -> BooleanArray:
        """Allow keys less than `window` positions away; global tokens are not among the keys of a row."""
        return abs(query - key) < self.window

    def parts(self, *, causal: bool) -> tuple[Part, ...]:
        """Return blocks as wide as the window, with their neighbours."""
        return (Part(BlockBand(self.window, 1, 1), self.allowed),)

    def pairs(self, length: int, *, causal: bool) -> float:
        """Return the pairs within the window and those with a global token."""
        return super().pairs(length, causal=causal) + length * (length // self.block)

    def model_problems(self, model: "ModelConfig") -> Iterator[str]:
        """Yield a model whose decoder has this attention, or whose positions are not T5's."""
        if model.family == "decoder":
            yield "attention transient_global is for encoders: a sum contains later tokens"
        if model.family == "encoder_decoder" and not model.decoder_attention:
            yield "attention transient_global is for encoders; give the decoder another: decoder_attention: [dense]"
        if model.query_stream:
            yield "attention transient_global is not for query_stream: a sum contains the tokens that are predicted"
        if model.attention_sinks:
            yield "attention_sinks are not for attention transient_global"
        if not isinstance(model.positions, Relative) or not model.positions.shared:
            yield "attention transient_global needs positions: relative, with one table for all layers"
