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
from t5x_lite.models.positions.rotary import Rotary
from t5x_lite.models.positions.stretches import STRETCHES, DynamicStretch

STRETCH_FIELDS: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low",
        "high_freq_factor": "high",
        "original_max_position_embeddings": "original_length",
    },
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "original_length",
        "beta_fast": "fast",
        "beta_slow": "slow",
        "attention_factor": "attention_factor",
        "truncate": "whole_pairs",
    },
}
"""For each rope_type the fields of `rope_parameters`, and ours of `positions.rotary.stretch` of the same name."""
OPTIONAL_STRETCH_FIELDS = {"beta_fast", "beta_slow", "attention_factor", "truncate"}
IGNORED_ROPE_FIELDS = {"rope_theta", "rope_type", "type"}
ORIGINAL_LENGTH = "original_max_position_embeddings"


def read_rope_parameters(rope: Mapping[str, Any], config: Mapping[str, Any]) -> Settings:
    """Return our rotary positions.

    Args:
        rope: the parameters, with `rope_theta`.
        config: the config, whose length of context stands in for an original length that `rope` lacks.

    Raises:
        UserError: the stretch, or a parameter of it, is missing or not supported.
    """
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in STRETCH_FIELDS:
        raise UserError(f"rope_type {rope_type!r} is not supported; supported are {', '.join(STRETCH_FIELDS)}")
    fields = STRETCH_FIELDS[rope_type]
    if ORIGINAL_LENGTH in fields and rope.get(ORIGINAL_LENGTH) is None:
        rope = {**rope, ORIGINAL_LENGTH: require_field(config, "max_position_embeddings")}
    stretch = {}
    for name, value in rope.items():
        if value is None or name in IGNORED_ROPE_FIELDS:
            continue
        if name in fields:
            stretch[fields[name]] = value
        elif name != "partial_rotary_factor" or value != 1:
            raise UserError(f"rope_parameters.{name}={value!r} is not supported for rope_type {rope_type}")
    for name in fields.keys() - OPTIONAL_STRETCH_FIELDS:
        require_field(rope, name)
    if rope_type == "dynamic":  # the original length is that of the config
        stretch["original_length"] = require_field(config, "max_position_embeddings")
    rotary: Settings = {"theta": float(rope["rope_theta"])}
    if rope_type != "default":
        rotary["stretch"] = {rope_type: stretch}
    return rotary


def write_rope_parameters(rotary: Rotary, config: ForeignConfig) -> dict[str, object]:
    """Return the parameters of rotary positions; a dynamic stretch sets the config's length of context too."""
    rope: dict[str, object] = {"rope_theta": rotary.theta, "rope_type": "default"}
    stretch = rotary.stretch
    if stretch is not None:
        (rope_type,) = (name for name, kind in STRETCHES.items() if type(stretch) is kind)
        rope["rope_type"] = rope_type
        for name, ours in STRETCH_FIELDS[rope_type].items():
            value = getattr(stretch, ours)
            is_default = name in OPTIONAL_STRETCH_FIELDS and value == type(stretch).model_fields[ours].default
            if not is_default:
                rope[name] = value
    if isinstance(stretch, DynamicStretch):
        config["max_position_embeddings"] = stretch.original_length
    return rope


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
