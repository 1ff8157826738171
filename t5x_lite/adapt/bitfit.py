"""BitFit: biases train, everything else is frozen (Ben Zaken et al. 2022, §3)."""

from t5x_lite.adapt.method import AdaptationMethod
from t5x_lite.models.config import ModelConfig


class BitFit(AdaptationMethod):
    """All biases train, those of the norms too."""

    def check(self, model: ModelConfig) -> None:
        """Raise ValueError for a model without biases."""
        if not model.bias:
            raise ValueError("adapt.method bitfit: this model has no biases (model.bias is false)")

    def first_trained_repeat(self, name: str, model: ModelConfig) -> int | None:
        """Train biases."""
        if name.endswith(".bias"):
            return 0
        return None
