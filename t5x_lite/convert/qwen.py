"""Qwen2 and Qwen3 in Hugging Face's format."""

from collections.abc import Mapping
from typing import Any

from t5x_lite.convert.config_table import (
    ConfigTable,
    Field,
    ForeignConfig,
    ForeignModel,
    Rule,
    Settings,
    layers_and_window,
)
from t5x_lite.convert.layer_types import FULL, SLIDING, read_windowed_pattern
from t5x_lite.convert.llama import (
    ATTENTION_BIAS,
    LLAMA_FIXED,
    LLAMA_LAYER,
    LLAMA_RULES,
    NO_BIAS,
    llama_fields,
    llama_like,
)
from t5x_lite.convert.weight_map import Modules
from t5x_lite.models.config import ModelConfig

# Configs: what takes more than one field to convert.

DEFAULT_FULL_LAYERS = 28
"""The first layers without a window that Transformers takes where a config gives no number."""


def read_window(config: Mapping[str, Any]) -> object:
    """Return the window of the layers that have one; None if no layer has."""
    return config.get("sliding_window") if config.get("use_sliding_window") else None


def _read_layer_types(source: ForeignModel, settings: Settings) -> None:
    """Read which layers attend within a window.

    Without `layer_types` these are the layers from `max_window_layers` on, if `use_sliding_window` is set.
    """
    config = source.config
    window = read_window(config)
    layer_types = config.get("layer_types")
    if layer_types is None:
        first_windowed = settings["layers"]
        if window is not None:
            first_windowed = config.get("max_window_layers", DEFAULT_FULL_LAYERS)
        layer_types = [FULL if layer < first_windowed else SLIDING for layer in range(settings["layers"])]
    settings["pattern"] = read_windowed_pattern(layer_types, settings["layers"], window)


def _write_layer_types(model: ModelConfig, config: ForeignConfig) -> None:
    config["layer_types"], window = layers_and_window(model, dense=FULL, local=SLIDING)
    config["use_sliding_window"] = window is not None
    config["sliding_window"] = window


LAYER_TYPES = Rule(
    ("layer_types", "use_sliding_window", "sliding_window", "max_window_layers"),
    read=_read_layer_types,
    write=_write_layer_types,
)

# Configs: tables.

QWEN2_CONFIG = ConfigTable(
    llama_fields(1e-6),
    fixed={**LLAMA_FIXED, "bias": False, "query_key_value_bias": True},
    rules=(*LLAMA_RULES, LAYER_TYPES),
    required_values={"attention_bias": (True, None), "mlp_bias": NO_BIAS, "use_mrope": (False, None)},
)
QWEN3_HEAD_DIM = Field("head_dim", "head_dim", default=128)
"""Transformers takes 128 where a config of Qwen3 gives no width of heads."""
QWEN3_CONFIG = ConfigTable(
    (*llama_fields(1e-6, QWEN3_HEAD_DIM), ATTENTION_BIAS),
    fixed={**LLAMA_FIXED, "feedforward_bias": False, "query_key_norm": "head"},
    rules=(*LLAMA_RULES, LAYER_TYPES),
    required_values={"mlp_bias": NO_BIAS},
)

# Weights.

QUERY_KEY_NORMS: Modules = {
    "self_attn.q_norm": "attention.query_norm",
    "self_attn.k_norm": "attention.key_norm",
}
QWEN3_LAYER: Modules = {**LLAMA_LAYER, **QUERY_KEY_NORMS}

# Model types.

QWEN2 = llama_like("qwen2", "Qwen2ForCausalLM", QWEN2_CONFIG, LLAMA_LAYER, "Qwen2Tokenizer")
"""Yang et al. 2024: Llama with biases of queries, keys and values, and a window in some layers."""

QWEN3 = llama_like("qwen3", "Qwen3ForCausalLM", QWEN3_CONFIG, QWEN3_LAYER, "Qwen2Tokenizer")
"""Yang et al. 2025: Llama with norms of each head's queries and keys, and a window in some layers."""
