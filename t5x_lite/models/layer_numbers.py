"""The layers that an array of a stack holds the weights of."""

import numpy as np
from jaxtyping import Int

from t5x_lite.models.config import ModelConfig


def layer_numbers(name: str, model: ModelConfig) -> Int[np.ndarray, "repeats"] | None:
    """Return the number of the layer, from 0, of each entry of an array along its first axis.

    Layers of `model.first` come before those of the pattern. Layers do not share weights.

    Args:
        name: the dotted name of a parameter.
        model: the model.

    Returns:
        None for an array outside the layers.
    """
    stack, is_in_stack, path = name.partition(".layers.")
    if not is_in_stack:
        return None
    place = int(path.partition(".")[0])
    if stack.endswith(".first"):
        return np.array([place])
    layers = model.decoder_layers if stack.startswith("decoder") else model.layers
    period = len(model.period)
    return len(model.first) + place + period * np.arange(model.count_repeats(layers))
