"""Position encodings: how a token knows its position. One file an encoding, one entry here."""

from t5x_lite.models.positions.alibi import ALiBi
from t5x_lite.models.positions.encoding import PositionEncoding
from t5x_lite.models.positions.learned import Learned
from t5x_lite.models.positions.none import NoPositions
from t5x_lite.models.positions.relative import Relative
from t5x_lite.models.positions.rotary import Rotary
from t5x_lite.models.positions.sinusoidal import Sinusoidal
from t5x_lite.models.positions.transformer_xl import TransformerXL

POSITIONS: dict[str, type[PositionEncoding]] = {
    "learned": Learned,
    "sinusoidal": Sinusoidal,
    "rotary": Rotary,
    "relative": Relative,
    "alibi": ALiBi,
    "transformer_xl": TransformerXL,
    "none": NoPositions,
}

__all__ = [
    "POSITIONS",
    "ALiBi",
    "Learned",
    "NoPositions",
    "PositionEncoding",
    "Relative",
    "Rotary",
    "Sinusoidal",
    "TransformerXL",
]
