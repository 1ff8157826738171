"""BitFit: biases train, everything else stays as it was (Ben Zaken et al. 2022, §3)."""

from t5x_lite.adapt.method import Method
from t5x_lite.models.config import ModelConfig


class BitFit(Method):
    """All biases, those of the norms too."""

    def check(self, model: ModelConfig) -> None:
        if not model.bias:
            raise ValueError("adapt.method bitfit: this model has no biases (model.bias is false)")

    def trains(self, name: str, model: ModelConfig) -> bool | int:
        return name.endswith(".bias")
