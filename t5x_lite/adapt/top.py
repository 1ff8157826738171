"""The top layers and the head train; what is below stays as it was (Howard & Ruder 2018, §3.3, as a fixed choice)."""

from t5x_lite.adapt.method import Method
from t5x_lite.models.config import ModelConfig
from t5x_lite.schema import Int, setting


class Top(Method):
    """The last `layers` layers of every stack, with its final norm, and the outputs."""

    layers: Int = setting(2, "top layers that train", ge=1)

    def check(self, model: ModelConfig) -> None:
        if self.layers > min(model.layers, model.layers_of_decoder) or model.shared_layers:
            raise ValueError(
                f"adapt.method top.layers {self.layers}: the model has {model.layers} layers"
                + (" that share their weights" if model.shared_layers else "")
            )

    def trains(self, name: str, model: ModelConfig) -> bool | int:
        stack, inside, rest = name.partition(".layers.")
        if not inside:
            return name.startswith(("output.", "sentence.")) or ".final_norm." in name
        layers = model.layers_of_decoder if stack.startswith("decoder") else model.layers
        period, place = len(model.pattern), int(rest.partition(".")[0])
        # Layer r·period + place is among the last: the first such r.
        first = -(-(layers - self.layers - place) // period)
        return False if first >= layers // period else max(first, 0) or True
