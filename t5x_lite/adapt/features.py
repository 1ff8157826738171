"""Feature extraction: a frozen model's hidden states are features for a head (Devlin et al. 2019, §5.3)."""

from typing import TYPE_CHECKING

from t5x_lite.adapt.head import Head
from t5x_lite.models.config import ModelConfig
from t5x_lite.schema import Int, setting

if TYPE_CHECKING:
    from t5x_lite.models.surgery import Surgeon


class Features(Head):
    """As `head`, on the mean of the top layers' states. The objective's `pool` selects the tokens."""

    layers: Int = setting(4, "top layers whose states are averaged", ge=2, source="Devlin et al. 2019, Table 7")

    def check(self, model: ModelConfig) -> None:
        """Raise ValueError for a task without a head, or more layers than the model has."""
        super().check(model)
        if self.layers > model.layers:
            raise ValueError(f"adapt.method features.layers {self.layers} is more than the model's {model.layers}")

    def surgery(self, surgeon: "Surgeon") -> None:
        """Average the outputs of the top layers."""
        surgeon.average_last_layers(self.layers)
