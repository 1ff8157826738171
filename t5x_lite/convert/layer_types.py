"""Kinds of layers in Hugging Face's configs: with full attention, or within a window."""

from collections.abc import Sequence

from t5x_lite.convert.config_table import ForeignConfig, Settings, layers_and_window, shortest_period
from t5x_lite.convert.llama import read_attention
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig

SLIDING = "sliding_attention"
FULL = "full_attention"


def check_layer_count(field: str, values: Sequence[object], layers: int) -> None:
    """Refuse a list that has not one value for each layer.

    Raises:
        UserError: with the field and both numbers.
    """
    if len(values) != layers:
        raise UserError(f"{field} lists {len(values)} layers, but num_hidden_layers is {layers}")


def read_windowed_pattern(layer_types: Sequence[str], layers: int, window: object) -> list[Settings]:
    """Return the pattern of layers of which some attend within a window.

    Args:
        layer_types: the kind of every layer, `FULL` or `SLIDING`.
        layers: number of layers.
        window: the window; None if no layer has one.

    Raises:
        UserError: another number of kinds, an unknown one, or a kind without its window.
    """
    check_layer_count("layer_types", layer_types, layers)
    windows = {FULL: None, SLIDING: window}
    pattern = []
    for layer_type in shortest_period(list(layer_types)):
        if layer_type not in windows or (layer_type == SLIDING and window is None):
            raise UserError(f"layer_types has {layer_type!r} with sliding_window={window}, which is not supported")
        pattern.append({"attention": read_attention(windows[layer_type])})
    return pattern


def write_windowed_layers(model: ModelConfig, config: ForeignConfig, default_window: int) -> None:
    """Write the kinds of all layers and their window; `default_window` where no layer has one."""
    config["layer_types"], window = layers_and_window(model, dense=FULL, local=SLIDING)
    config["sliding_window"] = window or default_window
