"""Llama 1 to 3, Mistral, Mixtral and OLMo 2 in Hugging Face's format."""

from collections.abc import Mapping
from typing import Any

from t5x_lite.convert.config_table import (
    ACTIVATION,
    SIZE_FIELDS,
    ConfigTable,
    Field,
    ForeignConfig,
    ForeignModel,
    MissingComponent,
    Rule,
    Settings,
    require_field,
)
from t5x_lite.convert.model_type import OUTPUT_MATRIX, TIED_OUTPUT, Architecture, ModelType
from t5x_lite.convert.weight_map import Modules, StackModules, WeightTable
from t5x_lite.errors import UserError
from t5x_lite.models.attention.kinds import Local
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.positions.rotary import Rotary
from t5x_lite.models.positions.stretches import STRETCHES, DynamicStretch

# Configs: what takes more than one field to convert.


def _drop_default_head_dim(source: ForeignModel, settings: Settings) -> None:
    """Leave out a width of heads that the other sizes imply."""
    if settings["head_dim"] and settings["head_dim"] * settings["heads"] == settings["embed"]:
        settings["head_dim"] = None


HEAD_DIM = Rule(("head_dim",), read=_drop_default_head_dim)

ORIGINAL_LENGTH = "original_max_position_embeddings"
STRETCH_FIELDS: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low",
        "high_freq_factor": "high",
        ORIGINAL_LENGTH: "original_length",
    },
    "yarn": {
        "factor": "factor",
        ORIGINAL_LENGTH: "original_length",
        "beta_fast": "fast",
        "beta_slow": "slow",
        "attention_factor": "attention_factor",
        "truncate": "whole_pairs",
    },
}
"""For each rope_type the fields of `rope_parameters`, and ours of `positions.rotary.stretch` of the same name."""
OPTIONAL_STRETCH_FIELDS = {"beta_fast", "beta_slow", "attention_factor", "truncate"}
ORIGINAL_LENGTH_TYPES = {"dynamic", "llama3", "yarn"}
"""Types with an original length. Where `rope_parameters` lacks it, it is `max_position_embeddings`."""
IGNORED_ROPE_FIELDS = {"rope_theta", "rope_type", "type"}


def _read_rotary(source: ForeignModel, settings: Settings) -> None:
    rope = _find_rope_parameters(source.config)
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in STRETCH_FIELDS:
        raise UserError(f"rope_type {rope_type!r} is not supported; supported are {', '.join(STRETCH_FIELDS)}")
    fields = STRETCH_FIELDS[rope_type]
    stretch = {}
    for name, value in rope.items():
        if value is None or name in IGNORED_ROPE_FIELDS:
            continue
        if name in fields:
            stretch[fields[name]] = value
        elif name != "partial_rotary_factor" or value != 1:
            raise UserError(f"rope_parameters.{name}={value!r} is not supported for rope_type {rope_type}")
    if rope_type in ORIGINAL_LENGTH_TYPES and "original_length" not in stretch:
        stretch["original_length"] = require_field(source.config, "max_position_embeddings")
    for name in fields.keys() - OPTIONAL_STRETCH_FIELDS - {ORIGINAL_LENGTH}:
        require_field(rope, name)
    rotary: Settings = {"theta": float(rope["rope_theta"])}
    if rope_type != "default":
        rotary["stretch"] = {rope_type: stretch}
    settings["positions"] = {"rotary": rotary}


def _find_rope_parameters(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the parameters of rotary positions.

    Newer configs have them all in `rope_parameters`, older ones in `rope_theta` and `rope_scaling`.
    """
    theta = config.get("rope_theta", 10000.0)
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return {"rope_theta": theta, **parameters}


def _write_rotary(model: ModelConfig, config: ForeignConfig) -> None:
    if not isinstance(model.positions, Rotary):
        raise MissingComponent("positions.rotary.theta")
    rope: dict[str, object] = {"rope_theta": model.positions.theta, "rope_type": "default"}
    stretch = model.positions.stretch
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
    config["rope_parameters"] = rope


ROTARY = Rule(
    ("rope_parameters", "rope_theta", "rope_scaling", "max_position_embeddings"), read=_read_rotary, write=_write_rotary
)


def read_attention(window: object) -> str | Settings:
    """Return the attention of a layer: within a window, or dense if it is null."""
    return "dense" if window is None else {"local": {"window": window}}


def first_window(model: ModelConfig) -> int | None:
    """Return the window of a model's first layer; None if its attention is dense."""
    attention = model.pattern[0].attention
    return attention.window if isinstance(attention, Local) else None


def _read_sliding_window(source: ForeignModel, settings: Settings) -> None:
    settings["pattern"] = [{"attention": read_attention(source.config.get("sliding_window"))}]


def _write_sliding_window(model: ModelConfig, config: ForeignConfig) -> None:
    config["sliding_window"] = first_window(model)


SLIDING_WINDOW = Rule(("sliding_window",), read=_read_sliding_window, write=_write_sliding_window)


def _make_every_feedforward_moe(source: ForeignModel, settings: Settings) -> None:
    experts = settings.pop("moe")
    experts["expert"] = settings["feedforward"]
    settings["feedforward"] = {"moe": experts}


EXPERTS_IN_EVERY_LAYER = Rule((), read=_make_every_feedforward_moe)

# Configs: tables.


HEAD_DIM_FIELD = Field("head_dim", "head_dim", default=None)


def llama_fields(epsilon: float, head_dim: Field = HEAD_DIM_FIELD) -> tuple[Field, ...]:
    """Return the fields of Llama's config, which its descendants have too.

    Args:
        epsilon: the epsilon of norms where a config gives none.
        head_dim: the field of the width of heads.
    """
    return (
        *SIZE_FIELDS,
        Field("num_key_value_heads", "kv_heads", default=None),
        head_dim,
        Field("intermediate_size", "mlp"),
        Field("hidden_act", "feedforward.glu.activation", default="silu", transform=ACTIVATION),
        Field("rms_norm_eps", "norm.rmsnorm.epsilon", default=epsilon),
    )


ATTENTION_BIAS = Field("attention_bias", "bias", default=False, is_flag=True)
FEEDFORWARD_BIAS = Field("mlp_bias", "feedforward_bias", default=False, is_flag=True)
NO_BIAS = (False, None)

LLAMA_FIXED = {"family": "decoder", "init.normal.scale_residual": False}
LLAMA_RULES = (HEAD_DIM, ROTARY, TIED_OUTPUT)

LLAMA_CONFIG = ConfigTable((*llama_fields(1e-6), ATTENTION_BIAS, FEEDFORWARD_BIAS), LLAMA_FIXED, rules=LLAMA_RULES)
MISTRAL_CONFIG = ConfigTable(
    llama_fields(1e-6),
    fixed={**LLAMA_FIXED, "bias": False},
    rules=(*LLAMA_RULES, SLIDING_WINDOW),
    required_values={"attention_bias": NO_BIAS, "mlp_bias": NO_BIAS},
)
OLMO2_CONFIG = ConfigTable(
    (*llama_fields(1e-5), ATTENTION_BIAS),
    fixed={**LLAMA_FIXED, "feedforward_bias": False, "norm_place": "sublayer", "query_key_norm": "width"},
    rules=LLAMA_RULES,
    required_values={"mlp_bias": NO_BIAS},
)
MIXTRAL_CONFIG = ConfigTable(
    fields=(
        *llama_fields(1e-5, Field("head_dim", "head_dim", default=None, writes_null=True)),
        Field("num_local_experts", "moe.experts"),
        Field("num_experts_per_tok", "moe.router.top_k.k", default=2),
        Field("router_aux_loss_coef", "moe.router.top_k.balance", default=0.001),
    ),
    fixed={**LLAMA_FIXED, "bias": False, "moe.router.top_k.over": "model", "moe.dispatch": "dropless"},
    rules=(*LLAMA_RULES, SLIDING_WINDOW, EXPERTS_IN_EVERY_LAYER),
    required_values={"attention_bias": NO_BIAS, "mlp_bias": NO_BIAS},
)

# Weights.

LLAMA_MODULES: Modules = {
    "model.embed_tokens": "tokens",
    "model.norm": "decoder.stack.final_norm",
    "lm_head": "output.matrix",
}
ATTENTION: Modules = {
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.out",
}
GATED_FEEDFORWARD: Modules = {
    "mlp.gate_proj": "feedforward.gate",
    "mlp.up_proj": "feedforward.up",
    "mlp.down_proj": "feedforward.down",
}
LLAMA_LAYER: Modules = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "feedforward_norm",
    **ATTENTION,
    **GATED_FEEDFORWARD,
}
MIXTRAL_LAYER: Modules = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "feedforward_norm",
    **ATTENTION,
    "block_sparse_moe.gate": "feedforward.router",
    "block_sparse_moe.experts.{expert}.w1": "feedforward.experts.gate",
    "block_sparse_moe.experts.{expert}.w3": "feedforward.experts.up",
    "block_sparse_moe.experts.{expert}.w2": "feedforward.experts.down",
}
OLMO2_LAYER: Modules = {
    "post_attention_layernorm": "attention_norm",
    **ATTENTION,
    **GATED_FEEDFORWARD,
    "post_feedforward_layernorm": "feedforward_norm",
    "self_attn.q_norm": "attention.query_norm",
    "self_attn.k_norm": "attention.key_norm",
}


def llama_like(
    name: str, architecture: str, config: ConfigTable, layer_modules: Modules, tokenizer_class: str = "LlamaTokenizer"
) -> ModelType:
    """Return a model type that differs from Llama in its config and in the modules of a layer."""
    stack = StackModules("model.layers.{layer}", "decoder.stack.layers", layer_modules)
    return ModelType(
        name=name,
        architectures=(Architecture(architecture, objective="causal"),),
        config=config,
        weights=WeightTable(LLAMA_MODULES, (stack,)),
        tokenizer_class=tokenizer_class,
        base_model_prefix="model.",
        ignored_tensors=(r".*rotary_emb\.inv_freq",),  # wavelengths of rotary positions, in older files
        copies={OUTPUT_MATRIX: "model.embed_tokens.weight"},
    )


# Model types.

LLAMA = llama_like("llama", "LlamaForCausalLM", LLAMA_CONFIG, LLAMA_LAYER)
"""Touvron et al. 2023; Grattafiori et al. 2024."""

MISTRAL = llama_like("mistral", "MistralForCausalLM", MISTRAL_CONFIG, LLAMA_LAYER)
"""Jiang et al. 2023: Llama with a sliding window in every layer."""

MIXTRAL = llama_like("mixtral", "MixtralForCausalLM", MIXTRAL_CONFIG, MIXTRAL_LAYER)
"""Jiang et al. 2024: Mistral with experts in every layer, two of which each token passes."""

OLMO2 = llama_like("olmo2", "Olmo2ForCausalLM", OLMO2_CONFIG, OLMO2_LAYER, "PreTrainedTokenizerFast")
"""OLMo et al. 2025: norms on the sublayers' outputs, queries and keys normed over all heads at once."""
