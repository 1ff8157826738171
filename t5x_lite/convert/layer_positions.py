"""Rotary positions in Hugging Face's format that differ between layers that see all keys and layers within a window."""

from collections.abc import Mapping
from typing import Any

from t5x_lite.convert.config_table import ForeignConfig, Settings
from t5x_lite.convert.layer_types import FULL, SLIDING
from t5x_lite.convert.rope import read_rope_parameters, require_rotary, write_rope_parameters
from t5x_lite.errors import UserError
from t5x_lite.models.attention.kinds import Local
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.positions.rotary import Rotary


def read_layer_positions(
    config: Mapping[str, Any],
    parameters: Mapping[str, Mapping[str, Any] | None],
    settings: Settings,
    fields_of_bases: Mapping[str, tuple[str, float]],
) -> None:
    """Read the positions of both kinds of layers into the model's settings and those of its pattern.

    Args:
        config: the config.
        parameters: its `rope_parameters`, by kind of layer.
        settings: our settings, which hold the pattern already.
        fields_of_bases: for each kind the field of older configs that has the base of wavelengths, and its default.

    Raises:
        UserError: another kind, or parameters that are not supported.
    """
    if parameters.keys() - fields_of_bases.keys():
        raise UserError(f"rope_parameters must have {FULL} and {SLIDING}, found {', '.join(sorted(parameters))}")
    positions = {}
    for kind, (field, theta) in fields_of_bases.items():
        rope = {"rope_theta": config.get(field, theta), **(parameters.get(kind) or {})}
        positions[kind] = {"rotary": read_rope_parameters(rope, config)}
    settings["positions"] = positions[FULL]
    if positions[SLIDING] == positions[FULL]:
        return
    for layer in settings["pattern"]:
        if layer["attention"] != "dense":
            layer["positions"] = positions[SLIDING]


def write_layer_positions(model: ModelConfig, config: ForeignConfig) -> None:
    """Write `rope_parameters` for both kinds of layers."""
    rotary = {FULL: require_rotary(model), SLIDING: require_rotary(model)}
    for layer in model.pattern:
        if isinstance(layer.attention, Local) and isinstance(layer.positions, Rotary):
            rotary[SLIDING] = layer.positions
    config["rope_parameters"] = {kind: write_rope_parameters(rotary[kind], config) for kind in (SLIDING, FULL)}
