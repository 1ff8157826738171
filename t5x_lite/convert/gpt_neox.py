"""GPT-NeoX and Pythia in Hugging Face's format."""

from t5x_lite.convert.config_table import (
    ACTIVATION,
    SIZE_FIELDS,
    ConfigTable,
    Field,
    Transform,
)
from t5x_lite.convert.model_type import Architecture, ModelType, tied_output
from t5x_lite.convert.rope import partial_rotary
from t5x_lite.convert.weight_map import Fused, Modules, StackModules, WeightTable

# Config.

PARTIAL_ROTARY = partial_rotary("rotary_emb_base", "rotary_pct", default_share=0.25)


def _read_sublayers(is_parallel: bool) -> str:
    return "parallel" if is_parallel else "sequential"


def _write_sublayers(sublayers: str) -> bool:
    return sublayers == "parallel"


GPT_NEOX_CONFIG = ConfigTable(
    fields=(
        *SIZE_FIELDS,
        Field("intermediate_size", "mlp"),
        Field("hidden_act", "feedforward.mlp.activation", default="gelu", transform=ACTIVATION),
        Field("layer_norm_eps", "norm.layernorm.epsilon", default=1e-5),
        Field("hidden_dropout", "dropout", default=0.0),
        Field("attention_dropout", "dropout", is_read=False),
        Field("attention_bias", "bias", default=True, is_flag=True),
        Field(
            "use_parallel_residual",
            "sublayers",
            default=True,
            transform=Transform(_read_sublayers, _write_sublayers),
            is_flag=True,
        ),
    ),
    fixed={"family": "decoder", "feedforward_bias": True, "init.normal.scale_residual": False},
    rules=(PARTIAL_ROTARY, tied_output("embed_out.weight")),
    without_effect=("hidden_dropout_prob",),  # Transformers reads `hidden_dropout` alone
)

# Weights.

GPT_NEOX_LAYER: Modules = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "feedforward_norm",
    "attention.query_key_value": Fused(("attention.query", "attention.key", "attention.value"), by_axis="kv_heads"),
    "attention.dense": "attention.out",
    "mlp.dense_h_to_4h": "feedforward.up",
    "mlp.dense_4h_to_h": "feedforward.down",
}

GPT_NEOX = ModelType(
    name="gpt_neox",
    architectures=(Architecture("GPTNeoXForCausalLM", objective="causal"),),
    config=GPT_NEOX_CONFIG,
    weights=WeightTable(
        modules={
            "gpt_neox.embed_in": "tokens",
            "gpt_neox.final_layer_norm": "decoder.stack.final_norm",
            "embed_out": "output.matrix",
        },
        stacks=(StackModules("gpt_neox.layers.{layer}", "decoder.stack.layers", GPT_NEOX_LAYER),),
    ),
    tokenizer_class="GPTNeoXTokenizer",
    base_model_prefix="gpt_neox.",
    output_matrix="embed_out.weight",
    ignored_tensors=(r".*\.attention\.(masked_)?bias", r".*rotary_emb\.inv_freq"),
    copies={"embed_out.weight": "gpt_neox.embed_in.weight"},
    renamed_tensors={r"^lm_head\.": "embed_out."},
)
"""Black et al. 2022, §2.1; Biderman et al. 2023: sublayers side by side, a quarter of each head's channels rotated."""
