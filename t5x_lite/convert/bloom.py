"""BLOOM in Hugging Face's format."""

from t5x_lite.convert.config_table import ConfigTable, Field, ForeignModel, Rule, Settings, check_count, require_field
from t5x_lite.convert.falcon import SEQUENTIAL_NORMS, SUBLAYER_MODULES
from t5x_lite.convert.model_type import OUTPUT_MATRIX, TIED_OUTPUT, Architecture, ModelType
from t5x_lite.convert.weight_map import StackModules, WeightTable

# Config.

OTHER_NAMES = {"embed": ("n_embed", "hidden_size"), "layers": ("num_hidden_layers",), "heads": ("num_attention_heads",)}
"""Sizes of ours, and further names that configs have for them; the first of these that a config has counts."""


def _read_other_names(source: ForeignModel, settings: Settings) -> None:
    """Read sizes under the names that the released configs have."""
    for setting, names in OTHER_NAMES.items():
        for name in names:
            if source.config.get(name) is not None:
                settings[setting] = source.config[name]
                break
        if settings[setting] is None:
            require_field(source.config, names[-1])
    settings["layers"] = check_count("num_hidden_layers", settings["layers"])


BLOOM_CONFIG = ConfigTable(
    fields=(
        Field("vocab_size", "vocab"),
        Field("hidden_size", "embed", default=None),
        Field("n_layer", "layers", default=None),
        Field("n_head", "heads", default=None),
        Field("layer_norm_epsilon", "norm.layernorm.epsilon", default=1e-5),
        Field("hidden_dropout", "dropout", default=0.0),
        Field("attention_dropout", "dropout", is_read=False),
    ),
    fixed={
        "family": "decoder",
        "embedding_norm": True,
        "positions.alibi.slopes": "powers_of_two",
        "feedforward.mlp.activation": "gelu_tanh",
        "init.normal.scale_residual": False,
    },
    rules=(
        Rule(("n_embed", "hidden_size", "num_hidden_layers", "num_attention_heads"), read=_read_other_names),
        TIED_OUTPUT,
    ),
    required_values={"apply_residual_connection_post_layernorm": (False, None)},
    without_effect=(
        "attention_softmax_in_fp32",  # float32 is used here anyway
        "bias_dropout_fusion",
        "masked_softmax_fusion",
        "n_inner",
        "offset_alibi",
        "seq_length",
        "skip_bias_add",
        "skip_bias_add_qkv",
        "slow_but_exact",  # the same sums in parts
    ),
)

BLOOM = ModelType(
    name="bloom",
    architectures=(Architecture("BloomForCausalLM", objective="causal"),),
    config=BLOOM_CONFIG,
    weights=WeightTable(
        modules={
            "transformer.word_embeddings": "tokens",
            "transformer.word_embeddings_layernorm": "decoder.embedding.norm",
            "transformer.ln_f": "decoder.stack.final_norm",
            "lm_head": "output.matrix",
        },
        stacks=(
            StackModules("transformer.h.{layer}", "decoder.stack.layers", {**SEQUENTIAL_NORMS, **SUBLAYER_MODULES}),
        ),
    ),
    tokenizer_class="BloomTokenizer",
    base_model_prefix="transformer.",
    copies={OUTPUT_MATRIX: "transformer.word_embeddings.weight"},
)
"""Le Scao et al. 2022, §3.2: ALiBi, and a norm after the embedding."""
