"""GPT-2, GPT-Neo and OPT in Hugging Face's format."""

from t5x_lite.convert.config_table import (
    ACTIVATION,
    SIZE_FIELDS,
    ConfigTable,
    Field,
    ForeignConfig,
    ForeignModel,
    Rule,
    Settings,
    check_count,
    layers_and_window,
    require_field,
    shortest_period,
)
from t5x_lite.convert.model_type import OUTPUT_MATRIX, TIED_OUTPUT, Architecture, ModelType
from t5x_lite.convert.weight_map import TORCH_LEAF_NAMES, Fused, Modules, StackModules, WeightFormat, WeightTable
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig

# GPT-2: config, weights, model type.

GPT2_CONFIG = ConfigTable(
    fields=(
        Field("vocab_size", "vocab"),
        Field("n_layer", "layers"),
        Field("n_embd", "embed"),
        Field("n_head", "heads"),
        Field("n_inner", "mlp", default=None, writes_null=True),
        Field("n_positions", "positions.learned.length"),
        Field("layer_norm_epsilon", "norm.layernorm.epsilon", default=1e-5),
        Field("activation_function", "feedforward.mlp.activation", default="gelu_new", transform=ACTIVATION),
        Field("resid_pdrop", "dropout", default=0.1),
        Field("embd_pdrop", "dropout", is_read=False),
        Field("attn_pdrop", "dropout", is_read=False),
    ),
    fixed={"family": "decoder"},
    rules=(TIED_OUTPUT,),
    required_values={"scale_attn_weights": (True, None), "scale_attn_by_inverse_layer_idx": (False, None)},
)
GPT2_MODULES: Modules = {
    "transformer.wte": "tokens",
    "transformer.wpe": "decoder.embedding.positions.table",
    "transformer.ln_f": "decoder.stack.final_norm",
    "lm_head": "output.matrix",
}
CONV1D_FORMAT = WeightFormat(TORCH_LEAF_NAMES, matrices_are_transposed=False, transposed_modules=("lm_head",))
"""Modules of the class Conv1D in Transformers, which stores its matrix as [in, out]; the output is a `Linear`."""
GPT2_WEIGHTS = WeightTable(
    modules=GPT2_MODULES,
    stacks=(
        StackModules(
            "transformer.h.{layer}",
            "decoder.stack.layers",
            {
                "ln_1": "attention_norm",
                "ln_2": "feedforward_norm",
                "mlp.c_fc": "feedforward.up",
                "mlp.c_proj": "feedforward.down",
                "attn.c_attn": Fused(("attention.query", "attention.key", "attention.value")),
                "attn.c_proj": "attention.out",
            },
        ),
    ),
    weight_format=CONV1D_FORMAT,
)
GPT2 = ModelType(
    name="gpt2",
    architectures=(Architecture("GPT2LMHeadModel", objective="causal"),),
    config=GPT2_CONFIG,
    weights=GPT2_WEIGHTS,
    tokenizer_class="GPT2Tokenizer",
    base_model_prefix="transformer.",
    ignored_tensors=(r"transformer\.h\.\d+\.attn\.(masked_)?bias",),
    copies={OUTPUT_MATRIX: "transformer.wte.weight"},
)
"""Radford et al. 2019."""

# GPT-Neo: config, weights, model type.

DEFAULT_WINDOW = 256
"""The window that Transformers takes where a config gives none."""


def _read_attention_types(source: ForeignModel, settings: Settings) -> None:
    """Read `attention_types`: pairs of (kinds of attention, how many times these repeat)."""
    local_attention = {"local": {"window": source.config.get("window_size", DEFAULT_WINDOW)}}
    kinds: list[str] = []
    attention_types = require_field(source.config, "attention_types")
    layers = 0
    for period, repeats in attention_types:
        layers += len(period) * check_count("the repeats of attention_types", repeats)
    if layers != settings["layers"]:
        raise UserError(f"attention_types describes {layers} layers, but num_layers is {settings['layers']}")
    for period, repeats in attention_types:
        kinds.extend(period * repeats)
    pattern = []
    for kind in shortest_period(kinds):
        attention = local_attention if kind == "local" else "dense"
        pattern.append({"attention": attention})
    settings["pattern"] = pattern


def _write_attention_types(model: ModelConfig, config: ForeignConfig) -> None:
    layers, window = layers_and_window(model, dense="global", local="local")
    period = len(model.period)
    config["attention_types"] = [[layers[:period], model.layers // period]]
    config["attention_layers"] = layers
    config["window_size"] = window or DEFAULT_WINDOW


GPT_NEO_CONFIG = ConfigTable(
    fields=(
        Field("vocab_size", "vocab"),
        Field("num_layers", "layers"),
        Field("hidden_size", "embed"),
        Field("num_heads", "heads"),
        Field("intermediate_size", "mlp", default=None, writes_null=True),
        Field("max_position_embeddings", "positions.learned.length"),
        Field("layer_norm_epsilon", "norm.layernorm.epsilon", default=1e-5),
        Field("activation_function", "feedforward.mlp.activation", default="gelu_new", transform=ACTIVATION),
        Field("resid_dropout", "dropout", default=0.0),
        Field("embed_dropout", "dropout", is_read=False),
        Field("attention_dropout", "dropout", is_read=False),
    ),
    fixed={
        "family": "decoder",
        "query_key_value_bias": False,
        "attention_scale": 1.0,
        "init.normal.scale_residual": False,
    },
    rules=(
        Rule(("attention_types", "window_size"), read=_read_attention_types, write=_write_attention_types),
        TIED_OUTPUT,
    ),
    without_effect=("attention_layers",),
)
GPT_NEO_WEIGHTS = WeightTable(
    modules=GPT2_MODULES,
    stacks=(
        StackModules(
            "transformer.h.{layer}",
            "decoder.stack.layers",
            {
                "ln_1": "attention_norm",
                "ln_2": "feedforward_norm",
                "mlp.c_fc": "feedforward.up",
                "mlp.c_proj": "feedforward.down",
                "attn.attention.q_proj": "attention.query",
                "attn.attention.k_proj": "attention.key",
                "attn.attention.v_proj": "attention.value",
                "attn.attention.out_proj": "attention.out",
            },
        ),
    ),
)
GPT_NEO = ModelType(
    name="gpt_neo",
    architectures=(Architecture("GPTNeoForCausalLM", objective="causal"),),
    config=GPT_NEO_CONFIG,
    weights=GPT_NEO_WEIGHTS,
    tokenizer_class="GPT2Tokenizer",
    base_model_prefix="transformer.",
    ignored_tensors=(r"transformer\.h\.\d+\.attn\.attention\.(masked_)?bias",),
    copies={OUTPUT_MATRIX: "transformer.wte.weight"},
)
"""Black et al. 2021: dense and local layers in turn, scores not scaled, no biases on query, key and value."""

# OPT: config, weights, model type.


def _read_350m(source: ForeignModel, settings: Settings) -> None:
    """Read what the 350M model alone has: a narrower token embedding, and norms after each sublayer."""
    if settings["embedding"] is not None:
        settings["embedding_projection"] = "tokens"
    is_pre_norm = require_field(source.config, "do_layer_norm_before")
    settings["norm_place"] = "pre" if is_pre_norm else "post"


def _write_norm_place(model: ModelConfig, config: ForeignConfig) -> None:
    config["do_layer_norm_before"] = model.norm_place == "pre"


OPT_CONFIG = ConfigTable(
    fields=(
        *SIZE_FIELDS,
        Field("word_embed_proj_dim", "embedding", default=None),
        Field("ffn_dim", "mlp"),
        Field("max_position_embeddings", "positions.learned.length"),
        Field("activation_function", "feedforward.mlp.activation", default="relu", transform=ACTIVATION),
        Field("enable_bias", "bias", default=True, is_flag=True),
        Field("layer_norm_elementwise_affine", "norm.layernorm.scale", default=True, is_flag=True),
        Field("layer_norm_elementwise_affine", "norm.layernorm.bias", default=True, is_flag=True),
        Field("dropout", "dropout", default=0.1),
        Field("attention_dropout", "dropout", is_read=False),
    ),
    fixed={
        "family": "decoder",
        "positions.learned.offset": 2,
        "norm.layernorm.epsilon": 1e-5,
        "init.normal.deviation": 0.006,
    },
    rules=(Rule(("do_layer_norm_before",), _read_350m, _write_norm_place), TIED_OUTPUT),
    required_values={"_remove_final_layer_norm": (False, None)},
    without_effect=("activation_dropout",),
)
OPT_WEIGHTS = WeightTable(
    modules={
        "model.decoder.embed_tokens": "tokens",
        "model.decoder.embed_positions": "decoder.embedding.positions.table",
        "model.decoder.project_in": "decoder.project",
        "model.decoder.project_out": "output.project",
        "model.decoder.final_layer_norm": "decoder.stack.final_norm",
        "lm_head": "output.matrix",
    },
    stacks=(
        StackModules(
            "model.decoder.layers.{layer}",
            "decoder.stack.layers",
            {
                "self_attn_layer_norm": "attention_norm",
                "self_attn.q_proj": "attention.query",
                "self_attn.k_proj": "attention.key",
                "self_attn.v_proj": "attention.value",
                "self_attn.out_proj": "attention.out",
                "final_layer_norm": "feedforward_norm",
                "fc1": "feedforward.up",
                "fc2": "feedforward.down",
            },
        ),
    ),
)
OPT = ModelType(
    name="opt",
    architectures=(Architecture("OPTForCausalLM", objective="causal"),),
    config=OPT_CONFIG,
    weights=OPT_WEIGHTS,
    tokenizer_class="GPT2Tokenizer",
    base_model_prefix="model.",
    copies={OUTPUT_MATRIX: "model.decoder.embed_tokens.weight"},
)
"""Zhang et al. 2022: ReLU, and positions that start at 2."""
