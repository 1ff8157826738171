"""Gradual unfreezing and discriminative learning rates (ULMFiT: Howard & Ruder 2018, §3.2-3.3)."""

import numpy as np

from t5x_lite.adapt.method import AdaptationMethod
from t5x_lite.arrays import Array
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layer_path import LayerPath, depth_of_stack, parse_layer_path
from t5x_lite.schema import setting

EMBEDDING_PARTS = (".embedding.", ".project.", ".stack.positions.", ".stack.global_positions.")
"""Parts of the names of parameters that join with the embeddings: positions, token types, projection to the width."""


class Unfreeze(AdaptationMethod):
    """The head trains first, then a layer more at a time from the top; lower layers have lower rates.

    Depth counts from the top: the head and the outputs are 0, the last layer 1, the embeddings layers + 1. Depth d
    joins at the share d / (layers + 1) · `share` of the run and has the rate divided by `decay`^d.
    """

    decay: float = setting(2.6, "a layer's rate is that above it divided by this", ge=1, source="ULMFiT, §3.2")
    share: float = setting(0.5, "share of the run after which everything trains; 0: from the start", ge=0, le=1)

    def learning_rate_factor(self, name: str, model: ModelConfig, progress: Array) -> Array | None:
        """Return the factor of a parameter, one for each repeat in a stack."""
        path = parse_layer_path(name)
        # A mixer of several layers of cells counts as so many layers.
        first_depth = sum(layer.mixer.depth() for layer in model.first)
        period_depth = sum(layer.mixer.depth() for layer in model.period)
        repeats = model.count_repeats(depth_of_stack(model, name))
        layers = first_depth + repeats * period_depth
        if path is not None and not model.shared_layers:
            below = _layers_below(path, model)
            if path.is_first:
                depth = np.array([layers - below])
            else:
                depth = layers - (first_depth + np.arange(repeats) * period_depth + below)
        elif name.startswith(("tokens.", "decoder_tokens.")) or any(part in name for part in EMBEDDING_PARTS):
            depth = np.array(layers + 1)
        elif path is not None:
            depth = np.array(1)
        else:
            depth = np.array(0)
        has_joined = progress >= depth / (layers + 1) * self.share
        return has_joined * self.decay ** -depth.astype(np.float32)


def _layers_below(path: LayerPath, model: ModelConfig) -> int:
    """Return the number of layers of the period below a parameter.

    What follows a mixer belongs to its last layer of cells.
    """
    period = path.period(model)
    mixer = period[path.index].mixer
    module, _, name = path.parameter.partition(".")
    if module == "attention_norm":
        place_in_layer = 0
    elif module == "mixer":
        place_in_layer = mixer.place_of(name)
    else:
        place_in_layer = mixer.depth() - 1
    return sum(layer.mixer.depth() for layer in period[: path.index]) + place_in_layer
