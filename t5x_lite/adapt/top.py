"""The top layers and the head train; the layers below are frozen (Howard & Ruder 2018, §3.3, as a fixed choice)."""

from t5x_lite.adapt.method import AdaptationMethod
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layer_path import depth_of_stack, parse_layer_path
from t5x_lite.schema import Int, setting

OUTPUTS = ("output.", "neighbours.", "sentence.", "detection.", "span.")
"""Beginnings of the names of the parameters of outputs."""


class Top(AdaptationMethod):
    """The last `layers` layers of every stack train, with its final norm, and the outputs."""

    layers: Int = setting(2, "top layers that train", ge=1)

    def check(self, model: ModelConfig) -> None:
        """Raise ValueError for fewer layers, or layers that share their weights."""
        if self.layers > min(model.layers, model.decoder_layers) or model.shared_layers:
            message = f"adapt.method top.layers {self.layers}: the model has {model.layers} layers"
            if model.shared_layers:
                message += " that share their weights"
            raise ValueError(message)

    def first_trained_repeat(self, name: str, model: ModelConfig) -> int | None:
        """Return the first repeat whose layer is among the last."""
        path = parse_layer_path(name)
        if path is None:
            if name.startswith(OUTPUTS) or ".final_norm." in name:
                return 0
            return None
        first_trained = depth_of_stack(model, name) - self.layers
        return next((repeat for repeat, number in enumerate(path.numbers(model)) if number >= first_trained), None)
