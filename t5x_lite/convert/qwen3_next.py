"""Qwen3-Next in Hugging Face's format."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from t5x_lite.convert.config_table import (
    ConfigTable,
    Field,
    ForeignConfig,
    ForeignModel,
    MissingComponent,
    Rule,
    Settings,
    check_count,
    shortest_period,
)
from t5x_lite.convert.layer_types import FULL, check_layer_count
from t5x_lite.convert.llama import ATTENTION_BIAS, HEAD_DIM, LLAMA_FIXED, NO_BIAS, llama_fields, llama_like
from t5x_lite.convert.model_type import TIED_OUTPUT
from t5x_lite.convert.qwen import QUERY_KEY_NORMS
from t5x_lite.convert.qwen_moe import (
    EXPERT_FIELDS,
    EXPERTS,
    QWEN3_MOE_LAYER,
    SHARED_EXPERT,
    SHARED_WIDTH,
    kinds_of_layers,
    read_moe,
    read_shared_experts,
    write_shared_experts,
)
from t5x_lite.convert.rope import partial_rotary
from t5x_lite.convert.weight_map import Fused, Modules, Stored
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.mixers import GatedDeltaNet

# Config.

LINEAR = "linear_attention"
MIXER_FIELDS = {
    "linear_num_value_heads": ("heads", 32),
    "linear_num_key_heads": ("key_heads", 16),
    "linear_key_head_dim": ("key_dim", 128),
    "linear_value_head_dim": ("value_dim", 128),
    "linear_conv_kernel_dim": ("taps", 4),
}
"""Foreign fields of the mixer, our settings, and the values that Transformers takes where a config has none."""
DEFAULT_INTERVAL = 4
"""The last of so many layers attends to all keys where a config does not list the layers."""
DEFAULTS = {"num_experts": 512, "num_experts_per_tok": 10, "norm_topk_prob": True, SHARED_WIDTH: 512}


def _read_layers(source: ForeignModel, settings: Settings) -> None:
    """Read the layers: which have the mixer and which attention, and which have experts."""
    config = {**DEFAULTS, **source.config}
    if settings["feedforward"]["glu"]["activation"] != "silu":
        raise UserError(f"hidden_act={config['hidden_act']!r} is not supported: the convolutions would have it too")
    mixer: Settings = {ours: config.get(name, default) for name, (ours, default) in MIXER_FIELDS.items()}
    mixer["epsilon"] = settings["norm"]["rmsnorm"]["epsilon"]
    mixers = {LINEAR: {"mixer": {"gated_deltanet": mixer}}, FULL: {}}
    experts = read_moe(config, settings)
    experts |= read_shared_experts(config, experts["mlp"])
    mixer_names = _mixers_of_layers(config, settings["layers"])
    kinds = [
        f"{name} {kind}" for name, kind in zip(mixer_names, kinds_of_layers(config, settings["layers"]), strict=True)
    ]
    pattern = []
    for name in shortest_period(kinds):
        mixer_name, kind = name.split()
        if mixer_name not in mixers:
            raise UserError(f"layer_types has {mixer_name[:60]!r}; supported are {', '.join(mixers)}")
        pattern.append({**mixers[mixer_name], "feedforward": {"moe": experts} if kind == EXPERTS else None})
    settings["pattern"] = pattern


def _mixers_of_layers(config: Mapping[str, Any], layers: int) -> list[str]:
    """Return the mixer of every layer."""
    names = config.get("layer_types")
    if names is None:
        interval = check_count("full_attention_interval", config.get("full_attention_interval", DEFAULT_INTERVAL))
        names = [LINEAR if (layer + 1) % interval else FULL for layer in range(layers)]
    check_layer_count("layer_types", names, layers)
    return list(names)


def _write_layers(model: ModelConfig, config: ForeignConfig) -> None:
    mixers = [layer.mixer for layer in model.period if isinstance(layer.mixer, GatedDeltaNet)]
    if not mixers:
        raise MissingComponent("pattern.mixer.gated_deltanet")
    mixer = mixers[0].resolve(model)
    for name, (ours, _) in MIXER_FIELDS.items():
        config[name] = getattr(mixer, ours)
    write_shared_experts(model, config)
    names = [LINEAR if isinstance(layer.mixer, GatedDeltaNet) else FULL for layer in model.period]
    config["layer_types"] = names * (model.layers // len(names))


LAYERS = Rule(
    ("layer_types", "full_attention_interval", "num_experts", SHARED_WIDTH, *MIXER_FIELDS, *EXPERT_FIELDS),
    read=_read_layers,
    write=_write_layers,
)
QWEN3_NEXT_CONFIG = ConfigTable(
    (
        *llama_fields(1e-6, Field("head_dim", "head_dim", default=256)),
        Field("moe_intermediate_size", "moe.mlp", default=512),
        ATTENTION_BIAS,
    ),
    fixed={
        **LLAMA_FIXED,
        "feedforward_bias": False,
        "query_key_norm": "head",
        "norm.rmsnorm.unit_offset": True,
        "attention_output_gate": True,
    },
    rules=(HEAD_DIM, partial_rotary("rope_theta", "partial_rotary_factor", default_share=0.25), LAYERS, TIED_OUTPUT),
    required_values={"mlp_bias": NO_BIAS},
    without_effect=("use_sliding_window",),
)

# Weights: a layer has the mixer or attention, and experts or a dense feed-forward.

QUERIES_KEYS_VALUES_GATES = ("mixer.query", "mixer.key", "mixer.value", "mixer.gate")
CONVOLUTIONS = ("mixer.query_convolution", "mixer.key_convolution", "mixer.value_convolution")
QWEN3_NEXT_LAYER: Modules = {
    **QWEN3_MOE_LAYER,
    **SHARED_EXPERT,
    "self_attn.q_proj": Fused(("attention.query", "attention.output_gate"), by_axis="heads"),
    **QUERY_KEY_NORMS,
    "linear_attn.in_proj_qkvz": Fused(QUERIES_KEYS_VALUES_GATES, by_axis="kv_heads"),
    "linear_attn.in_proj_ba": Fused(("mixer.strength", "mixer.step"), by_axis="kv_heads", axis_module="mixer.key"),
    "linear_attn.conv1d": Fused(CONVOLUTIONS),
    "linear_attn.dt_bias": Stored(("mixer.step_bias",)),
    "linear_attn.A_log": Stored(("mixer.log_rate",)),
    "linear_attn.norm": "mixer.norm",
    "linear_attn.out_proj": "mixer.out",
}

# Model type.

QWEN3_NEXT = llama_like("qwen3_next", "Qwen3NextForCausalLM", QWEN3_NEXT_CONFIG, QWEN3_NEXT_LAYER, "Qwen2Tokenizer")
QWEN3_NEXT = replace(QWEN3_NEXT, ignored_tensors=(*QWEN3_NEXT.ignored_tensors, r"mtp\..*"))
"""Qwen Team 2025: Gated DeltaNet in three of four layers, gated attention in the fourth, and experts in all of them.

The module that predicts a further token (`mtp`) is left out, as Transformers leaves it out.
"""
