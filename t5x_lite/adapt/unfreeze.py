"""Gradual unfreezing and discriminative learning rates (ULMFiT: Howard & Ruder 2018, §3.2-3.3)."""

import numpy as np

from t5x_lite.adapt.method import AdaptationMethod
from t5x_lite.arrays import Array
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layer_numbers import layer_numbers
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
        numbers = layer_numbers(name, model)
        layers = model.layers
        if name.startswith("decoder"):
            layers = model.decoder_layers
        if numbers is not None and not model.shared_layers:
            depth = layers - numbers
        elif name.startswith("tokens.") or ".embedding." in name:
            depth = np.array(layers + 1)
        elif numbers is not None:
            depth = np.array(1)
        else:
            depth = np.array(0)
        has_joined = progress >= depth / (layers + 1) * self.share
        return has_joined * self.decay ** -depth.astype(np.float32)
