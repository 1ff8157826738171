"""BART in Hugging Face's format."""

from t5x_lite.convert.config_table import ACTIVATION, ConfigTable, Field, ForeignModel, Rule, Settings
from t5x_lite.convert.model_type import OUTPUT_MATRIX, TIED_OUTPUT, Architecture, ModelType
from t5x_lite.convert.weight_map import Modules, StackModules, WeightTable
from t5x_lite.errors import UserError

# Config.

SIZES_OF_BOTH_STACKS = {
    "decoder_attention_heads": "encoder_attention_heads",
    "decoder_ffn_dim": "encoder_ffn_dim",
    "num_hidden_layers": "encoder_layers",
}
"""Fields that must have the value of another one, where a config has them."""


def _check_sizes(source: ForeignModel, settings: Settings) -> None:
    """Refuse stacks of different widths."""
    for name, other in SIZES_OF_BOTH_STACKS.items():
        value = source.config.get(name)
        if value is not None and value != source.config[other]:
            raise UserError(f"{name}={value} is not supported (only the {source.config[other]} of {other})")


BART_CONFIG = ConfigTable(
    fields=(
        Field("vocab_size", "vocab"),
        Field("d_model", "embed"),
        Field("encoder_layers", "layers"),
        Field("decoder_layers", "decoder_layers"),
        Field("encoder_attention_heads", "heads"),
        Field("decoder_attention_heads", "heads", is_read=False),
        Field("encoder_ffn_dim", "mlp"),
        Field("decoder_ffn_dim", "mlp", is_read=False),
        Field("activation_function", "feedforward.mlp.activation", default="gelu", transform=ACTIVATION),
        Field("dropout", "dropout", default=0.1),
        Field("attention_dropout", "dropout", is_read=False),
        Field("max_position_embeddings", "positions.learned.length", default=1024),
        Field("scale_embedding", "scale_embedding", default=False, is_flag=True),
        Field("decoder_start_token_id", "start_token", default=2),
    ),
    fixed={
        "family": "encoder_decoder",
        "embedding_norm": True,
        "norm_place": "post",
        "norm.layernorm.epsilon": 1e-5,
        "positions.learned.offset": 2,
        "init.normal.scale_residual": False,
    },
    rules=(
        Rule((*SIZES_OF_BOTH_STACKS, *SIZES_OF_BOTH_STACKS.values()), read=_check_sizes),
        TIED_OUTPUT,
    ),
    required_values={
        "add_bias_logits": (False, None),
        "add_final_layer_norm": (False, None),
        "normalize_before": (False, None),
        "normalize_embedding": (True, None),
        "static_position_embeddings": (False, None),
    },
    without_effect=(
        "activation_dropout",
        "classif_dropout",
        "decoder_layerdrop",
        "encoder_layerdrop",
        "extra_pos_embeddings",  # the two rows before the first position
        "force_bos_token_to_be_generated",
    ),
)

# Weights.

ENCODER_LAYER: Modules = {
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.out_proj": "attention.out",
    "self_attn_layer_norm": "attention_norm",
    "fc1": "feedforward.up",
    "fc2": "feedforward.down",
    "final_layer_norm": "feedforward_norm",
}
DECODER_LAYER: Modules = {
    **ENCODER_LAYER,
    "encoder_attn.q_proj": "cross_attention.query",
    "encoder_attn.k_proj": "cross_attention.key",
    "encoder_attn.v_proj": "cross_attention.value",
    "encoder_attn.out_proj": "cross_attention.out",
    "encoder_attn_layer_norm": "cross_norm",
}

OBJECTIVE = {"denoising": {"permute_sentences": False}}
"""The objective of an imported run, whose data need not have sentences."""

BART = ModelType(
    name="bart",
    architectures=(Architecture("BartForConditionalGeneration", objective=OBJECTIVE),),
    config=BART_CONFIG,
    weights=WeightTable(
        modules={
            "model.shared": "tokens",
            "model.encoder.embed_positions": "encoder.embedding.positions.table",
            "model.encoder.layernorm_embedding": "encoder.embedding.norm",
            "model.decoder.embed_positions": "decoder.embedding.positions.table",
            "model.decoder.layernorm_embedding": "decoder.embedding.norm",
            "lm_head": "output.matrix",
        },
        stacks=(
            StackModules("model.encoder.layers.{layer}", "encoder.stack.layers", ENCODER_LAYER),
            StackModules("model.decoder.layers.{layer}", "decoder.stack.layers", DECODER_LAYER),
        ),
    ),
    tokenizer_class="BartTokenizer",
    base_model_prefix="model.",
    zero_tensors=("final_logits_bias",),
    copies={
        "model.encoder.embed_tokens.weight": "model.shared.weight",
        "model.decoder.embed_tokens.weight": "model.shared.weight",
        OUTPUT_MATRIX: "model.shared.weight",
    },
)
"""Lewis et al. 2020, §2.1: norms after sublayers and the embeddings, positions that start at 2, GELU."""
