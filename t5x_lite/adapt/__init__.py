"""From a run to the first weights of another. One file a method, one entry here."""

from t5x_lite.adapt.full import Full
from t5x_lite.adapt.method import Method
from t5x_lite.adapt.upcycle import Upcycle

ADAPTATIONS: dict[str, type[Method]] = {"full": Full, "upcycle": Upcycle}
