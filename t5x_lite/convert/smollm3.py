"""SmolLM3 in Hugging Face's format: Llama without positions in some layers."""

from t5x_lite.convert.config_table import (
    ConfigTable,
    ForeignConfig,
    ForeignModel,
    Rule,
    Settings,
    check_count,
    shortest_period,
)
from t5x_lite.convert.layer_types import FULL, check_layer_count
from t5x_lite.convert.llama import (
    ATTENTION_BIAS,
    FEEDFORWARD_BIAS,
    HEAD_DIM,
    LLAMA_FIXED,
    LLAMA_LAYER,
    llama_fields,
    llama_like,
)
from t5x_lite.convert.model_type import TIED_OUTPUT
from t5x_lite.convert.rope import rotary
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.positions import NoPositions

DEFAULT_INTERVAL = 4
"""The last of so many layers has no positions where a config does not list the layers."""
ROTARY = "rotary"
NONE = "none"


def _read_pattern(source: ForeignModel, settings: Settings) -> None:
    """Read which layers rotate queries and keys. All attend to every key before them."""
    layers = settings["layers"]
    kinds = set(source.config.get("layer_types") or [FULL])
    if kinds != {FULL}:
        raise UserError(f"layer_types has {', '.join(sorted(kinds))}, which is not supported (only {FULL})")
    is_rotated = source.config.get("no_rope_layers")
    if is_rotated is None:
        interval = check_count("no_rope_layer_interval", source.config.get("no_rope_layer_interval", DEFAULT_INTERVAL))
        is_rotated = [(layer + 1) % interval != 0 for layer in range(layers)]
    check_layer_count("no_rope_layers", is_rotated, layers)
    positions = [ROTARY if flag else NONE for flag in is_rotated]
    pattern: list[Settings] = []
    for kind in shortest_period(positions):
        pattern.append({"positions": NONE} if kind == NONE else {})
    settings["pattern"] = pattern


def _write_pattern(model: ModelConfig, config: ForeignConfig) -> None:
    is_rotated = [int(not isinstance(layer.positions, NoPositions)) for layer in model.period]
    config["no_rope_layers"] = is_rotated * (model.layers // len(is_rotated))


PATTERN = Rule(("layer_types", "no_rope_layers", "no_rope_layer_interval"), read=_read_pattern, write=_write_pattern)

SMOLLM3 = llama_like(
    "smollm3",
    "SmolLM3ForCausalLM",
    ConfigTable(
        (*llama_fields(1e-6), ATTENTION_BIAS, FEEDFORWARD_BIAS),
        LLAMA_FIXED,
        rules=(HEAD_DIM, rotary(2000000.0), TIED_OUTPUT, PATTERN),
        required_values={"use_sliding_window": (False, None)},
        without_effect=("sliding_window", "max_window_layers"),  # without `use_sliding_window`
    ),
    LLAMA_LAYER,
    "PreTrainedTokenizerFast",
)
"""Bakouch et al. 2025: grouped queries, and no positions in every fourth layer."""
