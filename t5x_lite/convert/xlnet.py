"""XLNet in Hugging Face's format."""

from t5x_lite.convert.bert import ENCODER_TIED, headless
from t5x_lite.convert.config_table import ACTIVATION, ConfigTable, Field
from t5x_lite.convert.llama import NO_BIAS
from t5x_lite.convert.model_type import HEAD_PREFIXES, Architecture, ModelType
from t5x_lite.convert.weight_map import Modules, StackModules, Stored, WeightTable

XLNET_CONFIG = ConfigTable(
    fields=(
        Field("vocab_size", "vocab", default=32_000),
        Field("d_model", "embed", default=1024),
        Field("n_layer", "layers", default=24),
        Field("n_head", "heads", default=16),
        Field("d_inner", "mlp", default=4096),
        Field("ff_activation", "feedforward.mlp.activation", default="gelu", transform=ACTIVATION),
        Field("layer_norm_eps", "norm.layernorm.epsilon", default=1e-12),
        Field("dropout", "dropout", default=0.1),
    ),
    fixed={
        "family": "encoder",
        "positions.transformer_xl.segments": True,
        "query_stream": True,
        "norm_place": "post",
        "bias": False,
        "feedforward_bias": True,
        "init.normal.scale_residual": False,
    },
    required_values={
        "attn_type": ("bi", None),
        "bi_data": NO_BIAS,
        "clamp_len": (-1, 0, None),
        "untie_r": (True, None),
    },
    without_effect=(
        *ENCODER_TIED,
        "d_head",  # always d_model / n_head
        "end_n_top",
        "mem_len",  # of the memory, which Transformers reads where a caller hands it over
        "reuse_len",
        "same_length",  # of attn_type uni
        "start_n_top",
        "summary_activation",
        "summary_last_dropout",
        "summary_type",
        "summary_use_proj",
        "use_mems_eval",
        "use_mems_train",
    ),
)

XLNET_LAYER: Modules = {
    "rel_attn.q": Stored(("attention.query.weight",)),
    "rel_attn.k": Stored(("attention.key.weight",)),
    "rel_attn.v": Stored(("attention.value.weight",)),
    "rel_attn.o": Stored(("attention.out.weight",), last_axis_first=True),
    "rel_attn.r": Stored(("attention.positions.distance.weight",)),
    "rel_attn.r_w_bias": Stored(("attention.positions.key_bias",)),
    "rel_attn.r_r_bias": Stored(("attention.positions.distance_bias",)),
    "rel_attn.r_s_bias": Stored(("attention.positions.segment_bias",)),
    "rel_attn.seg_embed": Stored(("attention.positions.segments",)),
    "rel_attn.layer_norm": "attention_norm",
    "ff.layer_1": "feedforward.up",
    "ff.layer_2": "feedforward.down",
    "ff.layer_norm": "feedforward_norm",
}

XLNET = ModelType(
    name="xlnet",
    architectures=(
        Architecture(
            "XLNetLMHeadModel",
            objective={"permutation": {}},
            settings={"output_transform": False, "output_bias": True},
        ),
    ),
    headless=headless("XLNetModel"),
    head_prefixes=(*HEAD_PREFIXES, "lm_loss."),
    config=XLNET_CONFIG,
    weights=WeightTable(
        modules={
            "transformer.word_embedding": "tokens",
            "transformer.mask_emb": Stored(("query_vector",), unit_axes=2),
            "lm_loss": "output",
        },
        stacks=(StackModules("transformer.layer.{layer}", "encoder.stack.layers", XLNET_LAYER),),
    ),
    tokenizer_class="XLNetTokenizer",
    base_model_prefix="transformer.",
    copies={"lm_loss.weight": "transformer.word_embedding.weight"},
)
"""Yang et al. 2019: Transformer-XL's positions in an encoder, relative segments, and a second stream of queries."""
