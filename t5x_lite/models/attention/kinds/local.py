"""Local attention: a sliding window (Child et al. 2019; GPT-Neo, Mistral)."""

from t5x_lite.models.attention.kinds.kind import AttentionKind
from t5x_lite.models.attention.kinds.shapes import BlockBand, BooleanArray, Part, PositionArray
from t5x_lite.schema import Int, setting


class Local(AttentionKind):
    """Keys less than `window` positions away, the query's own position counted.

    In an encoder the window reaches as far to the right as to the left.
    """

    window: Int = setting(256, "keys that a causal query attends to, itself included", unit="tokens", ge=1)

    @property
    def max_lookback(self) -> int | None:
        """Return the window."""
        return self.window

    def allowed(self, query: PositionArray, key: PositionArray) -> BooleanArray:
        """Allow keys less than `window` positions away."""
        return abs(query - key) < self.window

    def parts(self, *, causal: bool) -> tuple[Part, ...]:
        """Return blocks as wide as the window, with their neighbours."""
        after = 0 if causal else 1
        return (Part(BlockBand(self.window, 1, after), self.allowed),)
