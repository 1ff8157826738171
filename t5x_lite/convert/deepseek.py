"""DeepSeek-V2 and DeepSeek-V3 in Hugging Face's format."""

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
    require_field,
)
from t5x_lite.convert.llama import GATED_FEEDFORWARD, HEAD_DIM, LLAMA_FIXED, NO_BIAS, llama_fields, llama_like
from t5x_lite.convert.model_type import TIED_OUTPUT, ModelType
from t5x_lite.convert.rope import (
    ROTARY_FIELDS,
    read_rope_parameters,
    require_rotary,
    rope_parameters_of,
    write_rope_parameters,
)
from t5x_lite.convert.weight_map import Fused, Modules, Stored, WeightTable
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.experts.routers import DeepSeek, TopK
from t5x_lite.models.mixers import LatentAttention
from t5x_lite.models.positions.rope_scaling import YarnScaling

# Configs: what takes more than one field to convert.

MSCALES = ("mscale", "mscale_all_dim")


def _read_interleaved_rotary(source: ForeignModel, settings: Settings) -> None:
    """Read rotary positions, whose YaRN may scale all channels of queries and keys."""
    rope = rope_parameters_of(source.config)
    mscales = {}
    for name in MSCALES:
        value = rope.pop(name, None)
        if value:
            mscales[name] = value
    rotary = read_rope_parameters(rope, source.config)
    if mscales:
        if len(mscales) < len(MSCALES) or "yarn" not in rotary.get("scaling", {}):
            raise UserError(
                f"rope_parameters.{next(iter(mscales))} is supported with rope_type yarn and both of {MSCALES}"
            )
        rotary["scaling"]["yarn"].update(mscales)
    settings["positions"] = {"rotary": {**rotary, "interleaved": True}}


def _read_rotary(source: ForeignModel, settings: Settings) -> None:
    _read_interleaved_rotary(source, settings)
    settings["positions"]["rotary"]["interleaved"] = source.config.get("rope_interleave", True)


def _write_interleaved_rotary(model: ModelConfig, config: ForeignConfig) -> None:
    rotary = require_rotary(model)
    rope = write_rope_parameters(rotary, config)
    if isinstance(rotary.scaling, YarnScaling) and rotary.scaling.mscale_all_dim:
        rope.update({name: getattr(rotary.scaling, name) for name in MSCALES})
    config["rope_parameters"] = rope


def _write_rotary(model: ModelConfig, config: ForeignConfig) -> None:
    _write_interleaved_rotary(model, config)
    config["rope_interleave"] = require_rotary(model).interleaved


INTERLEAVED_ROTARY = Rule(ROTARY_FIELDS, read=_read_interleaved_rotary, write=_write_interleaved_rotary)
ROTARY = Rule((*ROTARY_FIELDS, "rope_interleave"), read=_read_rotary, write=_write_rotary)

LATENT_FIELDS = {
    "kv_lora_rank": ("rank", 512),
    "q_lora_rank": ("query_rank", 1536),
    "qk_rope_head_dim": ("rotary", 64),
    "v_head_dim": ("value", 128),
}
"""For each field our setting of latent attention, and the value that Transformers takes where a config gives none."""


def _read_layers(source: ForeignModel, settings: Settings, first: int, router: Settings) -> None:
    """Read layers of latent attention, the first of them dense, the others with experts."""
    config = source.config
    if first:
        check_count("first_k_dense_replace", first)
    mixer = {ours: config.get(name, default) for name, (ours, default) in LATENT_FIELDS.items()}
    layer = {"mixer": {"latent_attention": mixer}}
    settings["first"] = [{**layer, "feedforward": "dense"}] * first
    settings["pattern"] = [layer]
    experts = {"expert": settings["feedforward"], "router": router, "dispatch": "dropless", **settings.pop("moe")}
    settings["feedforward"] = {"moe": experts}


def _write_layers(model: ModelConfig, config: ForeignConfig) -> None:
    mixer = model.pattern[0].mixer
    if not isinstance(mixer, LatentAttention):
        raise MissingComponent("pattern.mixer.latent_attention.rank")
    for name, (ours, _) in LATENT_FIELDS.items():
        config[name] = getattr(mixer, ours)
    config["first_k_dense_replace"] = len(model.first)


def _group_settings(config: Mapping[str, Any]) -> Settings:
    return {"groups": config.get("n_group") or 1, "chosen_groups": config.get("topk_group") or 1}


def _read_v2_layers(source: ForeignModel, settings: Settings) -> None:
    config = source.config
    choices = require_field(config, "num_experts_per_tok")
    method = config.get("topk_method", "greedy")
    groups = {}
    if method == "group_limited_greedy":
        groups = _group_settings(config)
    elif method != "greedy":
        raise UserError(f"topk_method={method!r} is not supported (only greedy and group_limited_greedy)")
    router = {
        **groups,
        "k": choices,
        "scale": config.get("routed_scaling_factor", 1.0),
        "normalize": False,
        # Its f is divided by k, so that the loss is 1 in balance (Liu et al. 2024, equation 24).
        "balance": config.get("aux_loss_alpha", 0.001) / choices,
        "over": "row" if config.get("seq_aux", True) else "batch",
    }
    _read_layers(source, settings, config.get("first_k_dense_replace", 0), {"top_k": router})


def _write_v2_layers(model: ModelConfig, config: ForeignConfig) -> None:
    _write_layers(model, config)
    router = model.mixtures[0].router
    if not isinstance(router, TopK):
        raise MissingComponent("moe.router.top_k.k")
    _write_router(router, config)
    config["topk_method"] = "group_limited_greedy"
    if router.groups == 1:
        config.update(topk_method="greedy", n_group=None, topk_group=None)
    config["aux_loss_alpha"] = router.balance * router.k
    config["seq_aux"] = router.over == "row"


def _write_router(router: TopK | DeepSeek, config: ForeignConfig) -> None:
    config["num_experts_per_tok"] = router.k
    config["routed_scaling_factor"] = router.scale
    config["n_group"] = router.groups
    config["topk_group"] = router.chosen_groups


def _read_v3_layers(source: ForeignModel, settings: Settings) -> None:
    config = source.config
    router = {
        **_group_settings({"n_group": 8, "topk_group": 4, **config}),
        "k": config.get("num_experts_per_tok", 8),
        "scale": config.get("routed_scaling_factor", 2.5),
        "balance": config.get("aux_loss_alpha", 1e-4),
    }
    _read_layers(source, settings, config.get("first_k_dense_replace", 3), {"deepseek": router})


def _write_v3_layers(model: ModelConfig, config: ForeignConfig) -> None:
    _write_layers(model, config)
    router = model.mixtures[0].router
    if not isinstance(router, DeepSeek):
        raise MissingComponent("moe.router.deepseek.k")
    _write_router(router, config)
    config["aux_loss_alpha"] = router.balance


LAYER_FIELDS = (
    *LATENT_FIELDS,
    "first_k_dense_replace",
    "num_experts_per_tok",
    "routed_scaling_factor",
    "n_group",
    "topk_group",
    "aux_loss_alpha",
)
V2_LAYERS = Rule((*LAYER_FIELDS, "topk_method", "seq_aux"), read=_read_v2_layers, write=_write_v2_layers)
V3_LAYERS = Rule(LAYER_FIELDS, read=_read_v3_layers, write=_write_v3_layers)

# Configs: tables.


def _fields(experts: int, shared: int, width: int) -> tuple[Field, ...]:
    """Return the fields of both versions; the numbers are taken where a config gives none."""
    *sizes, epsilon = llama_fields(1e-6, Field("qk_nope_head_dim", "head_dim", default=128))
    assert epsilon.name == "rms_norm_eps"  # a required value, because the norms of latents have another field
    return (
        *sizes,
        Field("n_routed_experts", "moe.experts", default=experts),
        Field("n_shared_experts", "moe.shared", default=shared),
        Field("moe_intermediate_size", "moe.mlp", default=width),
    )


FIXED = {**LLAMA_FIXED, "bias": False, "norm.rmsnorm.epsilon": 1e-6}
REQUIRED = {"rms_norm_eps": (1e-6, None), "attention_bias": NO_BIAS, "mlp_bias": NO_BIAS, "moe_layer_freq": (1, None)}
DERIVED = ("head_dim", "qk_head_dim", "ep_size")
"""Sizes that follow from others, and the number of devices that experts were trained on."""

V2_CONFIG = ConfigTable(
    _fields(experts=64, shared=2, width=1407),
    FIXED,
    constants={"rms_norm_eps": 1e-6},
    rules=(HEAD_DIM, INTERLEAVED_ROTARY, V2_LAYERS, TIED_OUTPUT),
    required_values={**REQUIRED, "norm_topk_prob": (False, None), "scoring_func": ("softmax", None)},
    without_effect=DERIVED,
)
V3_CONFIG = ConfigTable(
    _fields(experts=256, shared=1, width=2048),
    FIXED,
    constants={"rms_norm_eps": 1e-6},
    rules=(HEAD_DIM, ROTARY, V3_LAYERS, TIED_OUTPUT),
    required_values={
        **REQUIRED,
        "norm_topk_prob": (True, None),
        "scoring_func": ("sigmoid", None),
        "topk_method": ("noaux_tc", None),
    },
    without_effect=(*DERIVED, "seq_aux", "num_nextn_predict_layers", "num_mtp_layers"),
)

# Weights.

LAYER: Modules = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "feedforward_norm",
    "self_attn.kv_a_proj_with_mqa": Fused(("attention.down", "attention.rotary_key")),
    "self_attn.kv_a_layernorm": "attention.down_norm",
    "self_attn.kv_b_proj": Fused(("attention.key", "attention.value"), by_axis="kv_heads"),
    "self_attn.o_proj": "attention.out",
    **GATED_FEEDFORWARD,
    "mlp.gate": "feedforward.router",
    "mlp.gate.e_score_correction_bias": Stored(("feedforward.bias",)),
    "mlp.experts.{expert}.gate_proj": "feedforward.experts.gate",
    "mlp.experts.{expert}.up_proj": "feedforward.experts.up",
    "mlp.experts.{expert}.down_proj": "feedforward.experts.down",
    "mlp.shared_experts.gate_proj": "feedforward.shared.gate",
    "mlp.shared_experts.up_proj": "feedforward.shared.up",
    "mlp.shared_experts.down_proj": "feedforward.shared.down",
}
QUERY: Modules = {"self_attn.q_proj": "attention.query"}
QUERY_WITH_LATENT: Modules = {
    "self_attn.q_a_proj": "attention.query_down",
    "self_attn.q_a_layernorm": "attention.query_down_norm",
    "self_attn.q_b_proj": "attention.query",
}


def _select_weights(model: ModelConfig) -> WeightTable:
    """Return the table for queries with or without a latent."""
    mixer = model.pattern[0].mixer
    query = QUERY
    if isinstance(mixer, LatentAttention) and mixer.query_rank is not None:
        query = QUERY_WITH_LATENT
    (stack,) = DEEPSEEK_V2.weights.stacks
    return replace(DEEPSEEK_V2.weights, stacks=(replace(stack, modules={**LAYER, **query}),))


def _model_type(name: str, architecture: str, config: ConfigTable) -> ModelType:
    model_type = llama_like(name, architecture, config, LAYER, "PreTrainedTokenizerFast")
    predicts_more_tokens = r"model\.layers\.61\..*"  # the module after V3's 61 layers, which Transformers ignores too
    ignored = (*model_type.ignored_tensors, predicts_more_tokens)
    return replace(model_type, select_weights=_select_weights, ignored_tensors=ignored)


# Model types.

DEEPSEEK_V2 = _model_type("deepseek_v2", "DeepseekV2ForCausalLM", V2_CONFIG)
"""Liu et al. 2024a: latent attention, and experts chosen within groups, after a dense first layer."""

DEEPSEEK_V3 = _model_type("deepseek_v3", "DeepseekV3ForCausalLM", V3_CONFIG)
"""Liu et al. 2024b: experts chosen by sigmoid scores and a bias that balances their load."""
