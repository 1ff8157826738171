"""Dense attention: every key (Vaswani et al. 2017, §3.2.1)."""

from t5x_lite.models.attention.kinds.kind import AttentionKind
from t5x_lite.models.attention.kinds.shapes import BooleanArray, PositionArray


class Dense(AttentionKind):
    """Every key of the document and, in a decoder, no later one."""

    def allowed(self, query: PositionArray, key: PositionArray) -> BooleanArray:
        """Allow every pair."""
        return abs(query - key) >= 0

    def pairs(self, length: int, *, causal: bool) -> float:
        """Return length², or half of it, as MFU is counted (Chowdhery et al. 2022, appendix B)."""
        if causal:
            return length * length / 2
        return length * length
