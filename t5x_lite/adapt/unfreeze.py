"""Gradual unfreezing and discriminative learning rates (ULMFiT: Howard & Ruder 2018, §3.2-3.3)."""

import numpy as np

from t5x_lite.adapt.method import AdaptationMethod
from t5x_lite.arrays import Array
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layer_config import LayerConfig
from t5x_lite.schema import setting


class Unfreeze(AdaptationMethod):
    """The head trains first, then a layer more at a time from the top; lower layers have lower rates.

    Depth counts from the top: the head and the outputs are 0, the last layer 1, the embeddings layers + 1. Depth d
    joins at the share d / (layers + 1) · `share` of the run and has the rate divided by `decay`^d.
    """

    decay: float = setting(2.6, "a layer's rate is that above it divided by this", ge=1, source="ULMFiT, §3.2")
    share: float = setting(0.5, "share of the run after which everything trains; 0: from the start", ge=0, le=1)

    def learning_rate_factor(self, name: str, model: ModelConfig, progress: Array) -> Array | None:
        """Return the factor of a parameter, one for each repeat in a stack."""
        stack, is_in_stack, path = name.partition(".layers.")
        model_layers = model.layers
        if stack.startswith("decoder"):
            model_layers = model.decoder_layers
        # A mixer of several layers of cells counts as so many layers.
        first_depth = sum(layer.mixer.depth() for layer in model.first)
        period_depth = sum(layer.mixer.depth() for layer in model.period)
        repeats = model.count_repeats(model_layers)
        layers = first_depth + repeats * period_depth
        if is_in_stack and not model.shared_layers:
            is_first = stack.endswith(".first")
            number, _, parameter = path.partition(".")
            period = model.first if is_first else model.period
            below = _layers_below(period, int(number), parameter)
            if is_first:
                depth = np.array([layers - below])
            else:
                depth = layers - (first_depth + np.arange(repeats) * period_depth + below)
        elif name.startswith(("tokens.", "decoder_tokens.")) or ".embedding." in name:
            depth = np.array(layers + 1)
        elif is_in_stack:
            depth = np.array(1)
        else:
            depth = np.array(0)
        has_joined = progress >= depth / (layers + 1) * self.share
        return has_joined * self.decay ** -depth.astype(np.float32)


def _layers_below(period: tuple[LayerConfig, ...], place: int, parameter: str) -> int:
    """Return the number of layers of the period below a parameter of the layer at `place`.

    What follows a mixer belongs to its last layer of cells.
    """
    mixer = period[place].mixer
    module, _, name = parameter.partition(".")
    if module == "attention_norm":
        place_in_layer = 0
    elif module == "mixer":
        place_in_layer = mixer.place_of(name)
    else:
        place_in_layer = mixer.depth() - 1
    return sum(layer.mixer.depth() for layer in period[:place]) + place_in_layer
