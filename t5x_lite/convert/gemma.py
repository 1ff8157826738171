"""Gemma 1, Gemma 2 and the text model of Gemma 3 in Hugging Face's format."""

from collections.abc import Mapping
from typing import Any

from t5x_lite.convert.config_table import (
    SIZE_FIELDS,
    ConfigTable,
    Field,
    ForeignConfig,
    ForeignModel,
    Rule,
    Settings,
    Transform,
    check_count,
    read_activation,
    require_field,
    write_activation,
)
from t5x_lite.convert.layer_positions import read_layer_positions, write_layer_positions
from t5x_lite.convert.layer_types import FULL, SLIDING, read_windowed_pattern, write_windowed_layers
from t5x_lite.convert.llama import ATTENTION_BIAS, HEAD_DIM, LLAMA_FIXED, LLAMA_LAYER, llama_like
from t5x_lite.convert.model_type import TIED_OUTPUT
from t5x_lite.convert.qwen import QUERY_KEY_NORMS
from t5x_lite.convert.rope import ROTARY
from t5x_lite.convert.weight_map import Modules
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.feedforward.config import Activation

# Configs: what takes more than one field to convert.

DEFAULT_QUERY_SCALAR = 256
DEFAULT_WINDOW = 4096
DEFAULT_PERIODS = {"gemma2": 2, "gemma3_text": 6}
"""The last of so many layers attends to all keys where a config does not list the layers."""
FIELDS_OF_BASES = {FULL: ("rope_theta", 1_000_000.0), SLIDING: ("rope_local_base_freq", 10_000.0)}
"""For each kind of layer the field of older configs that has Gemma 3's base of wavelengths, and its default."""


def _read_query_scalar(source: ForeignModel, settings: Settings) -> None:
    """Read `query_pre_attn_scalar`: queries are divided by its root, as by that of the width of heads otherwise."""
    scalar = source.config.get("query_pre_attn_scalar", DEFAULT_QUERY_SCALAR)
    if scalar != settings["head_dim"]:
        settings["attention_scale"] = scalar**-0.5


def _write_query_scalar(model: ModelConfig, config: ForeignConfig) -> None:
    scalar = model.head_dim
    if model.attention_scale is not None:
        scalar = round(model.attention_scale**-2)
        if abs(scalar**-0.5 / model.attention_scale - 1) > 1e-9:
            raise UserError(f"attention_scale {model.attention_scale} is not the root of 1/n for a whole number n")
    config["query_pre_attn_scalar"] = scalar


QUERY_SCALAR = Rule(("query_pre_attn_scalar",), read=_read_query_scalar, write=_write_query_scalar)


def _read_pattern(config: Mapping[str, Any], settings: Settings, period: int) -> None:
    """Read which layers attend within a window: those that are listed, or else all but every `period`-th."""
    layers = settings["layers"]
    kinds = config.get("layer_types")
    if kinds is None:
        kinds = [SLIDING if (layer + 1) % period else FULL for layer in range(layers)]
    window = config.get("sliding_window", DEFAULT_WINDOW)
    if window is None and SLIDING in kinds:
        require_field(config, "sliding_window")
    settings["pattern"] = read_windowed_pattern(kinds, layers, window)


def _read_layers(source: ForeignModel, settings: Settings) -> None:
    """Read Gemma 2's layers. Some released configs repeat the window as `sliding_window_size`."""
    window = source.config.get("sliding_window", DEFAULT_WINDOW)
    repeated = source.config.get("sliding_window_size")
    if repeated not in (window, None):
        raise UserError(f"sliding_window_size={repeated} contradicts sliding_window={window}")
    _read_pattern(source.config, settings, DEFAULT_PERIODS["gemma2"])


def _write_layers(model: ModelConfig, config: ForeignConfig) -> None:
    write_windowed_layers(model, config, DEFAULT_WINDOW)


LAYERS = Rule(("layer_types", "sliding_window", "sliding_window_size"), read=_read_layers, write=_write_layers)


def _read_layers_with_positions(source: ForeignModel, settings: Settings) -> None:
    """Read Gemma 3's layers: those within a window have another base of wavelengths than those that see all."""
    config = source.config
    period = check_count("sliding_window_pattern", config.get("sliding_window_pattern", DEFAULT_PERIODS["gemma3_text"]))
    _read_pattern(config, settings, period)
    parameters = {**(config.get("rope_parameters") or {})}
    if config.get("rope_scaling") is not None:
        parameters[FULL] = {**(parameters.get(FULL) or {}), **config["rope_scaling"]}
    read_layer_positions(config, parameters, settings, FIELDS_OF_BASES)


def _write_layers_with_positions(model: ModelConfig, config: ForeignConfig) -> None:
    _write_layers(model, config)
    write_layer_positions(model, config)


LAYERS_WITH_POSITIONS = Rule(
    (
        "layer_types",
        "sliding_window",
        "sliding_window_pattern",
        "rope_parameters",
        "rope_scaling",
        "max_position_embeddings",
        "rope_theta",
        "rope_local_base_freq",
    ),
    read=_read_layers_with_positions,
    write=_write_layers_with_positions,
)

# Configs: tables.


def _read_first_activation(name: str) -> Activation:
    """Return our name of an activation of Gemma 1; the first configs call the approximation of GELU gelu."""
    return "gelu_tanh" if name == "gelu" else read_activation(name)


def _write_activation(name: Activation) -> str:
    """Return the name of an activation; Gemma's configs have PyTorch's name for the approximation of GELU."""
    return "gelu_pytorch_tanh" if name == "gelu_tanh" else write_activation(name)


FIRST_ACTIVATION = Transform(_read_first_activation, _write_activation)
GEMMA_ACTIVATION = Transform(read_activation, _write_activation)


def _gemma_fields(kv_heads: int) -> tuple[Field, ...]:
    """Return the fields that all versions have; `kv_heads` is taken where a config gives no number."""
    return (
        *SIZE_FIELDS,
        Field("num_key_value_heads", "kv_heads", default=kv_heads),
        Field("head_dim", "head_dim", default=256),
        Field("intermediate_size", "mlp"),
        Field("rms_norm_eps", "norm.rmsnorm.epsilon", default=1e-6),
        ATTENTION_BIAS,
    )


def _activation_field(name: str, transform: Transform = GEMMA_ACTIVATION) -> Field:
    return Field(name, "feedforward.glu.activation", default="gelu_pytorch_tanh", transform=transform)


def gemma2_fields(scores: float | None, logits: float | None) -> tuple[Field, ...]:
    """Return the fields since Gemma 2; the softcaps of scores and logits are taken where a config gives none."""
    return (
        *_gemma_fields(kv_heads=4),
        _activation_field("hidden_activation"),
        Field("attn_logit_softcapping", "attention_softcap", default=scores),
        Field("final_logit_softcapping", "logit_softcap", default=logits),
    )


GEMMA_FIXED = {
    **LLAMA_FIXED,
    "feedforward_bias": False,
    "norm.rmsnorm.unit_offset": True,
    "scale_embedding": True,
}
CAUSAL = {"use_bidirectional_attention": (False, None)}
NOT_READ = ("cache_implementation", "_sliding_window_pattern")

GEMMA_CONFIG = ConfigTable(
    (*_gemma_fields(kv_heads=16), _activation_field("hidden_act", FIRST_ACTIVATION)),
    GEMMA_FIXED,
    rules=(HEAD_DIM, ROTARY, TIED_OUTPUT),
    required_values={**CAUSAL, "hidden_activation": (None,)},
)
GEMMA2_CONFIG = ConfigTable(
    gemma2_fields(50.0, 30.0),
    {**GEMMA_FIXED, "norm_place": "sandwich"},
    rules=(QUERY_SCALAR, HEAD_DIM, ROTARY, LAYERS, TIED_OUTPUT),
    required_values=CAUSAL,
    without_effect=(*NOT_READ, "hidden_act"),
)
GEMMA3_CONFIG = ConfigTable(
    gemma2_fields(None, None),
    {**GEMMA_FIXED, "norm_place": "sandwich", "query_key_norm": "head"},
    rules=(QUERY_SCALAR, HEAD_DIM, LAYERS_WITH_POSITIONS, TIED_OUTPUT),
    required_values=CAUSAL,
    without_effect=(*NOT_READ, "hidden_act"),
)

# Weights.

GEMMA2_LAYER: Modules = {
    **LLAMA_LAYER,
    "post_attention_layernorm": "attention_output_norm",
    "pre_feedforward_layernorm": "feedforward_norm",
    "post_feedforward_layernorm": "feedforward_output_norm",
}
GEMMA3_LAYER: Modules = {**GEMMA2_LAYER, **QUERY_KEY_NORMS}

# Model types.

GEMMA = llama_like("gemma", "GemmaForCausalLM", GEMMA_CONFIG, LLAMA_LAYER, "GemmaTokenizer")
"""Gemma Team 2024a: Llama with GeGLU, scaled embeddings, and norms whose scale is 1 plus a weight."""

GEMMA2 = llama_like("gemma2", "Gemma2ForCausalLM", GEMMA2_CONFIG, GEMMA2_LAYER, "GemmaTokenizer")
"""Gemma Team 2024b: norms on both sides of sublayers, softcaps, and a window in every other layer."""

GEMMA3 = llama_like("gemma3_text", "Gemma3ForCausalLM", GEMMA3_CONFIG, GEMMA3_LAYER, "GemmaTokenizer")
"""Gemma Team 2025: five layers within a window for each that sees all, with a base of wavelengths for each kind."""
