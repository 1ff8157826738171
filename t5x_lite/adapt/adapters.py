"""Bottleneck adapters after the sublayers of every block (Houlsby et al. 2019; Pfeiffer et al. 2021)."""

from typing import ClassVar

from t5x_lite.adapt.method import Method, Surgeon
from t5x_lite.models.components import Activation
from t5x_lite.models.config import ModelConfig
from t5x_lite.schema import Int, setting


class Pfeiffer(Method):
    """An adapter after the feed-forward alone; nothing else trains (Pfeiffer et al. 2021, §3.1 and appendix A)."""

    light: ClassVar[bool] = True
    PLACES: ClassVar[tuple[str, ...]] = ("feedforward",)

    width: Int = setting(48, "channels of the bottleneck", ge=1, source="reduction factor 16 of a width of 768")
    activation: Activation = setting("relu", "inside it")

    def surgery(self, surgeon: Surgeon) -> None:
        surgeon.bottlenecks(self.PLACES, self.width, self.activation)


class Houlsby(Pfeiffer):
    """An adapter after attention and one after the feed-forward; they and all norms train (§2.1)."""

    PLACES: ClassVar[tuple[str, ...]] = ("attention", "feedforward")

    width: Int = setting(64, "channels of the bottleneck", ge=1, source="Houlsby et al. 2019, §3.2: 8 to 256")
    activation: Activation = setting("gelu", "inside it")

    def trains(self, name: str, model: ModelConfig) -> bool | int:
        return super().trains(name, model) or "norm." in name
