"""Learning-rate schedules: one file each, one entry here."""

from t5x_lite.train.schedules.constant import Constant
from t5x_lite.train.schedules.cosine import Cosine
from t5x_lite.train.schedules.inverse_square_root import InverseSquareRoot
from t5x_lite.train.schedules.linear import Linear
from t5x_lite.train.schedules.schedule import Schedule
from t5x_lite.train.schedules.slanted_triangular import SlantedTriangular
from t5x_lite.train.schedules.warmup_stable_decay import WarmupStableDecay

SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "cosine": Cosine,
    "linear": Linear,
    "rsqrt": InverseSquareRoot,
    "wsd": WarmupStableDecay,
    "slanted_triangular": SlantedTriangular,
}
