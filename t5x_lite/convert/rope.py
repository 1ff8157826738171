"""Rotary positions in Hugging Face's format."""

from collections.abc import Mapping
from typing import Any

from t5x_lite.convert.config_table import (
    ForeignConfig,
    ForeignModel,
    MissingComponent,
    Rule,
    Settings,
    require_field,
)
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.positions.rope_scaling import ROPE_SCALINGS, DynamicScaling
from t5x_lite.models.positions.rotary import Rotary
from t5x_lite.schema import component_name

ORIGINAL_LENGTH = "original_max_position_embeddings"
SCALING_FIELDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", ORIGINAL_LENGTH),
    "yarn": ("factor", ORIGINAL_LENGTH, "beta_fast", "beta_slow", "attention_factor", "truncate"),
}
"""For each rope_type the fields of `rope_parameters`. Those of `positions.rotary.scaling` have the same names, and
`original_length`."""
OPTIONAL_FIELDS = {"beta_fast", "beta_slow", "attention_factor", "truncate"}
IGNORED_ROPE_FIELDS = {"rope_theta", "rope_type", "type"}


def read_rope_parameters(rope: Mapping[str, Any], config: Mapping[str, Any]) -> Settings:
    """Return our rotary positions.

    Args:
        rope: the parameters, with `rope_theta`.
        config: the config, whose length of context stands in for an original length that `rope` lacks.

    Raises:
        UserError: the scaling, or a parameter of it, is missing or not supported.
    """
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in SCALING_FIELDS:
        raise UserError(f"rope_type {rope_type!r} is not supported; supported are {', '.join(SCALING_FIELDS)}")
    fields = SCALING_FIELDS[rope_type]
    if ORIGINAL_LENGTH in fields and rope.get(ORIGINAL_LENGTH) is None:
        rope = {**rope, ORIGINAL_LENGTH: require_field(config, "max_position_embeddings")}
    scaling: Settings = {}
    for name, value in rope.items():
        if value is None or name in IGNORED_ROPE_FIELDS:
            continue
        if name in fields:
            scaling[_our_name(name)] = value
        elif name != "partial_rotary_factor" or value != 1:
            raise UserError(f"rope_parameters.{name}={value!r} is not supported for rope_type {rope_type}")
    for name in fields:
        if name not in OPTIONAL_FIELDS:
            require_field(rope, name)
    if rope_type == "dynamic":  # the original length is that of the config
        scaling["original_length"] = require_field(config, "max_position_embeddings")
    rotary: Settings = {"theta": float(rope["rope_theta"])}
    if rope_type != "default":
        rotary["scaling"] = {rope_type: scaling}
    return rotary


def write_rope_parameters(rotary: Rotary, config: ForeignConfig) -> dict[str, object]:
    """Return the parameters of rotary positions; a dynamic scaling sets the config's length of context too."""
    rope: dict[str, object] = {"rope_theta": rotary.theta, "rope_type": "default"}
    scaling = rotary.scaling
    if scaling is not None:
        rope_type = component_name(ROPE_SCALINGS, scaling)
        rope["rope_type"] = rope_type
        for name in SCALING_FIELDS[rope_type]:
            ours = _our_name(name)
            value = getattr(scaling, ours)
            is_default = name in OPTIONAL_FIELDS and value == type(scaling).model_fields[ours].default
            if not is_default:
                rope[name] = value
    if isinstance(scaling, DynamicScaling):
        config["max_position_embeddings"] = scaling.original_length
    return rope


def _our_name(name: str) -> str:
    """Return the name of a field of `rope_parameters` in `positions.rotary.scaling`."""
    return "original_length" if name == ORIGINAL_LENGTH else name


def require_rotary(model: ModelConfig) -> Rotary:
    """Return a model's rotary positions.

    Raises:
        MissingComponent: it has others.
    """
    if not isinstance(model.positions, Rotary):
        raise MissingComponent("positions.rotary.theta")
    return model.positions


def rope_parameters_of(config: Mapping[str, Any], default_theta: float = 10000.0) -> dict[str, Any]:
    """Return `rope_parameters`, in which newer configs have all; older ones have `rope_theta` and `rope_scaling`."""
    theta = config.get("rope_theta", default_theta)
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return {"rope_theta": theta, **parameters}


ROTARY_FIELDS = ("rope_parameters", "rope_theta", "rope_scaling", "max_position_embeddings")


def rotary(default_theta: float = 10000.0) -> Rule:
    """Return the rule of rotary positions. A config without a base of wavelengths has `default_theta`."""

    def read(source: ForeignModel, settings: Settings) -> None:
        rope = rope_parameters_of(source.config, default_theta)
        settings["positions"] = {"rotary": read_rope_parameters(rope, source.config)}

    def write(model: ModelConfig, config: ForeignConfig) -> None:
        config["rope_parameters"] = write_rope_parameters(require_rotary(model), config)

    return Rule(ROTARY_FIELDS, read=read, write=write)


ROTARY = rotary()

PARTIAL = "partial_rotary_factor"


def partial_rotary(theta: str, share: str, default_share: float) -> Rule:
    """Return the rule of positions that rotate a share of a head's channels.

    Args:
        theta: the field of older configs for the base of wavelengths.
        share: their field for the share.
        default_share: the share that Transformers takes where a config gives none.
    """

    def read(source: ForeignModel, settings: Settings) -> None:
        config = source.config
        rope = rope_parameters_of({"rope_theta": config.get(theta, 10000.0), **config})
        rotated = rope.pop(PARTIAL, config.get(share, default_share))
        settings["positions"] = {"rotary": {**read_rope_parameters(rope, config), "share": rotated}}

    def write(model: ModelConfig, config: ForeignConfig) -> None:
        rotary = require_rotary(model)
        config["rope_parameters"] = {**write_rope_parameters(rotary, config), PARTIAL: rotary.share}

    fields = dict.fromkeys((*ROTARY_FIELDS, theta, share))
    return Rule(tuple(fields), read, write)
