"""Qwen2-MoE and Qwen3-MoE in Hugging Face's format."""

from collections.abc import Mapping
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
from t5x_lite.convert.layer_types import FULL
from t5x_lite.convert.llama import (
    ATTENTION_BIAS,
    HEAD_DIM,
    LLAMA_FIXED,
    LLAMA_LAYER,
    LLAMA_RULES,
    NO_BIAS,
    first_window,
    llama_fields,
    llama_like,
    read_attention,
)
from t5x_lite.convert.model_type import TIED_OUTPUT
from t5x_lite.convert.qwen import QWEN3_LAYER, read_window
from t5x_lite.convert.rope import ROTARY
from t5x_lite.convert.weight_map import Modules
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.experts.config import MoE
from t5x_lite.models.experts.routers import TopK

# Config.

EXPERT_COUNT_FIELDS = ("num_experts", "num_local_experts")
"""Names of the number of experts in older and in newer versions of Transformers."""
DEFAULT_CHOICES = 8
"""The experts of a token that Transformers takes where a config gives no number."""
SHARED_WIDTH = "shared_expert_intermediate_size"
QWEN2_DEFAULTS = {"num_experts": 60, "num_experts_per_tok": 4, SHARED_WIDTH: 5632}
EXPERTS = "experts"
DENSE = "dense"


def _read_experts(source: ForeignModel, settings: Settings) -> None:
    """Read which layers have experts, how many, and how these are chosen. A window is the same in all layers."""
    config = source.config
    counts = {config[name] for name in EXPERT_COUNT_FIELDS if config.get(name) is not None}
    if len(counts) != 1:
        raise UserError(f"{' and '.join(EXPERT_COUNT_FIELDS)} must give one number of experts")
    experts = read_moe({**config, "num_experts": counts.pop()}, settings)
    attention = read_attention(read_window(config))
    pattern = []
    for kind in shortest_period(kinds_of_layers(config, settings["layers"])):
        feedforward = {"moe": experts} if kind == EXPERTS else None
        pattern.append({"attention": attention, "feedforward": feedforward})
    settings["pattern"] = pattern


def read_moe(config: Mapping[str, Any], settings: Settings) -> Settings:
    """Return the layer of experts that a config with their number describes; `settings` has their feed-forward."""
    return {
        "experts": config["num_experts"],
        "mlp": settings.pop("moe")["mlp"],
        "router": _read_router(config),
        "dispatch": "dropless",
        "expert": settings["feedforward"],
    }


def read_shared_experts(config: Mapping[str, Any], width: int) -> Settings:
    """Return the experts that every token uses, which are stored as one that is a multiple of `width` wide."""
    shared_width = config[SHARED_WIDTH]
    if shared_width % width:
        raise UserError(f"{SHARED_WIDTH}={shared_width} is not a multiple of moe_intermediate_size={width}")
    return {"shared": shared_width // width, "shared_gate": True}


def _read_router(config: Mapping[str, Any]) -> Settings:
    """Return the router of a token's experts, or that of Switch for one expert whose weight is its probability."""
    choices = config.get("num_experts_per_tok", DEFAULT_CHOICES)
    balance = config.get("router_aux_loss_coef", 0.001)
    is_normalized = config.get("norm_topk_prob", False)
    if choices == 1 and not is_normalized:
        return {"switch": {"balance": balance, "z_loss": 0.0, "jitter": 0.0}}
    return {"top_k": {"k": choices, "normalize": is_normalized, "balance": balance}}


def write_experts(model: ModelConfig, config: ForeignConfig) -> MoE:
    """Write how many experts the layers have, how they are chosen and which layers have them; return these layers' own.

    Raises:
        MissingComponent: the model has no experts.
    """
    if not model.mixtures:
        raise MissingComponent("feedforward.moe")
    moe = model.mixtures[0]
    config["num_experts"] = moe.experts
    config["num_experts_per_tok"] = moe.router.choices
    config["norm_topk_prob"] = isinstance(moe.router, TopK) and moe.router.normalize
    config["router_aux_loss_coef"] = moe.router.balance
    kinds = []
    for layer in model.period:
        kinds.append(EXPERTS if isinstance(model.feedforward_of(layer), MoE) else DENSE)
    config.update(_write_kinds_of_layers(kinds * (model.layers // len(kinds))))
    return moe


def kinds_of_layers(config: Mapping[str, Any], layers: int) -> list[str]:
    """Return the kind of feed-forward of every layer."""
    step = check_count("decoder_sparse_step", config.get("decoder_sparse_step", 1))
    dense_layers = config.get("mlp_only_layers") or []
    kinds = []
    for layer in range(layers):
        is_dense = layer in dense_layers or (layer + 1) % step > 0
        kinds.append(DENSE if is_dense else EXPERTS)
    return kinds


def _write_experts(model: ModelConfig, config: ForeignConfig) -> None:
    write_experts(model, config)
    window = first_window(model)
    config["use_sliding_window"] = window is not None
    config["sliding_window"] = window


def write_shared_experts(model: ModelConfig, config: ForeignConfig) -> None:
    """Write the experts, and the width of those that every token uses."""
    moe = write_experts(model, config)
    config[SHARED_WIDTH] = moe.shared * (moe.mlp or model.mlp)


def _write_kinds_of_layers(kinds: list[str]) -> ForeignConfig:
    """Return the fields for these layers: the last of every n layers has experts, or the dense ones are listed."""
    step = kinds.index(EXPERTS) + 1
    fields: ForeignConfig = {"decoder_sparse_step": step, "mlp_only_layers": []}
    if kinds_of_layers(fields, len(kinds)) == kinds:
        return fields
    dense_layers = [layer for layer, kind in enumerate(kinds) if kind == DENSE]
    return {"decoder_sparse_step": 1, "mlp_only_layers": dense_layers}


def _read_layers_with_shared_experts(source: ForeignModel, settings: Settings) -> None:
    """Read which layers have experts, one of which every token uses."""
    config = {**QWEN2_DEFAULTS, **source.config}
    if any(name != FULL for name in config.get("layer_types") or ()):
        raise UserError(f"layer_types of qwen2_moe other than {FULL} are not supported")
    experts = read_moe(config, settings)
    experts |= read_shared_experts(config, experts["mlp"])
    pattern = []
    for kind in shortest_period(kinds_of_layers(config, settings["layers"])):
        pattern.append({"feedforward": {"moe": experts} if kind == EXPERTS else None})
    settings["pattern"] = pattern


EXPERT_FIELDS = (
    "num_experts_per_tok",
    "norm_topk_prob",
    "router_aux_loss_coef",
    "decoder_sparse_step",
    "mlp_only_layers",
)
LAYERS_WITH_SHARED_EXPERTS = Rule(
    ("num_experts", SHARED_WIDTH, "layer_types", *EXPERT_FIELDS),
    read=_read_layers_with_shared_experts,
    write=write_shared_experts,
)
QWEN2_MOE_CONFIG = ConfigTable(
    (
        *llama_fields(1e-6),
        Field("moe_intermediate_size", "moe.mlp", default=1408),
        Field("qkv_bias", "query_key_value_bias", default=True, is_flag=True),
    ),
    fixed={**LLAMA_FIXED, "bias": False},
    rules=(HEAD_DIM, ROTARY, LAYERS_WITH_SHARED_EXPERTS, TIED_OUTPUT),
    required_values={"use_sliding_window": (False, None)},
    without_effect=("sliding_window", "max_window_layers"),
)

LAYERS_WITH_EXPERTS = Rule(
    (
        *EXPERT_COUNT_FIELDS,
        *EXPERT_FIELDS,
        "use_sliding_window",
        "sliding_window",
    ),
    read=_read_experts,
    write=_write_experts,
)
QWEN3_MOE_CONFIG = ConfigTable(
    (*llama_fields(1e-6), Field("moe_intermediate_size", "moe.mlp", default=768), ATTENTION_BIAS),
    fixed={**LLAMA_FIXED, "feedforward_bias": False, "query_key_norm": "head"},
    rules=(*LLAMA_RULES, LAYERS_WITH_EXPERTS),
    required_values={"mlp_bias": NO_BIAS},
    without_effect=("max_window_layers",),
)

# Weights: a layer has experts or a dense feed-forward.

ROUTED_EXPERTS: Modules = {
    "mlp.gate": "feedforward.router",
    "mlp.experts.{expert}.gate_proj": "feedforward.experts.gate",
    "mlp.experts.{expert}.up_proj": "feedforward.experts.up",
    "mlp.experts.{expert}.down_proj": "feedforward.experts.down",
}
SHARED_EXPERT: Modules = {
    "mlp.shared_expert.gate_proj": "feedforward.shared.gate",
    "mlp.shared_expert.up_proj": "feedforward.shared.up",
    "mlp.shared_expert.down_proj": "feedforward.shared.down",
    "mlp.shared_expert_gate": "feedforward.shared_gate",
}
QWEN3_MOE_LAYER: Modules = {**QWEN3_LAYER, **ROUTED_EXPERTS}
QWEN2_MOE_LAYER: Modules = {**LLAMA_LAYER, **ROUTED_EXPERTS, **SHARED_EXPERT}

# Model types.

QWEN2_MOE = llama_like("qwen2_moe", "Qwen2MoeForCausalLM", QWEN2_MOE_CONFIG, QWEN2_MOE_LAYER, "Qwen2Tokenizer")
"""Yang et al. 2024, §2.2.2: Qwen2 with experts, one of which every token uses, behind a gate."""

QWEN3_MOE = llama_like("qwen3_moe", "Qwen3MoeForCausalLM", QWEN3_MOE_CONFIG, QWEN3_MOE_LAYER, "Qwen2Tokenizer")
"""Yang et al. 2025: Qwen3 with experts in some layers. With one expert a token it is Switch without limits of room."""
