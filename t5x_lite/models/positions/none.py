"""No position encoding."""

from t5x_lite.models.positions.encoding import PositionEncoding


class NoPositions(PositionEncoding):
    """No information on position beyond what the causal mask gives."""
