"""Llama 1 to 3, Mistral, Mixtral and OLMo 2 in Hugging Face's format."""

from t5x_lite.convert.config_table import (
    ACTIVATION,
    SIZE_FIELDS,
    ConfigTable,
    Field,
    ForeignConfig,
    ForeignModel,
    Rule,
    Settings,
)
from t5x_lite.convert.model_type import OUTPUT_MATRIX, TIED_OUTPUT, Architecture, ModelType
from t5x_lite.convert.rope import ROTARY, rotary
from t5x_lite.convert.weight_map import Modules, StackModules, WeightTable
from t5x_lite.models.attention.kinds import Local
from t5x_lite.models.config import ModelConfig

# Configs: what takes more than one field to convert.


def _drop_default_head_dim(source: ForeignModel, settings: Settings) -> None:
    """Leave out a width of heads that the other sizes imply."""
    if settings["head_dim"] and settings["head_dim"] * settings["heads"] == settings["embed"]:
        settings["head_dim"] = None


HEAD_DIM = Rule(("head_dim",), read=_drop_default_head_dim)


def read_attention(window: object) -> str | Settings:
    """Return the attention of a layer: within a window, or dense if it is null."""
    return "dense" if window is None else {"local": {"window": window}}


def first_window(model: ModelConfig) -> int | None:
    """Return the window of a model's first layer; None if its attention is dense."""
    attention = model.pattern[0].attention
    return attention.window if isinstance(attention, Local) else None


def sliding_window(default: int | None) -> Rule:
    """Return the rule of one window for all layers, which is `default` where a config gives none."""

    def read(source: ForeignModel, settings: Settings) -> None:
        settings["pattern"] = [{"attention": read_attention(source.config.get("sliding_window", default))}]

    def write(model: ModelConfig, config: ForeignConfig) -> None:
        config["sliding_window"] = first_window(model)

    return Rule(("sliding_window",), read=read, write=write)


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
    rules=(*LLAMA_RULES, sliding_window(4096)),
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
    rules=(HEAD_DIM, rotary(1000000.0), TIED_OUTPUT, sliding_window(None), EXPERTS_IN_EVERY_LAYER),
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
