"""RecurrentGemma in Hugging Face's format."""

from t5x_lite.convert.config_table import (
    SIZE_FIELDS,
    ConfigTable,
    Field,
    ForeignConfig,
    ForeignModel,
    MissingComponent,
    Rule,
    Settings,
    Transform,
)
from t5x_lite.convert.llama import LLAMA_FIXED
from t5x_lite.convert.model_type import OUTPUT_MATRIX, TIED_OUTPUT, Architecture, ModelType
from t5x_lite.convert.rope import partial_rotary
from t5x_lite.convert.weight_map import Modules, StackModules, Stored, WeightTable
from t5x_lite.errors import UserError
from t5x_lite.models.attention.kinds import Local
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layer_config import LayerConfig
from t5x_lite.models.mixers import RGLRU

# Config.

RECURRENT = "recurrent"
ATTENTION = "attention"
DEFAULT_BLOCKS = [RECURRENT, RECURRENT, ATTENTION]
DEFAULT_WINDOW = 2048
DEFAULT_TAPS = 4


def _read_layers(source: ForeignModel, settings: Settings) -> None:
    """Read the repeating layers: linear recurrences, with as many blocks as there are heads, and local attention."""
    config = source.config
    recurrence = {
        "width": config.get("lru_width") or settings["embed"],
        "blocks": settings["heads"],
        "taps": config.get("conv1d_width", DEFAULT_TAPS),
    }
    layers: dict[str, Settings] = {
        RECURRENT: {"mixer": {"rg_lru": recurrence}},
        ATTENTION: {"attention": {"local": {"window": config.get("attention_window_size", DEFAULT_WINDOW)}}},
    }
    names = list(config.get("block_types") or config.get("_block_types") or DEFAULT_BLOCKS)[: settings["layers"]]
    for name in names:
        if name not in layers:
            raise UserError(f"block_types has {str(name)[:60]!r}; supported are {', '.join(layers)}")
    settings["pattern"] = [layers[name] for name in names]


def _write_layers(model: ModelConfig, config: ForeignConfig) -> None:
    config["block_types"] = [_write_layer(model, layer, config) for layer in model.pattern]


def _write_layer(model: ModelConfig, layer: LayerConfig, config: ForeignConfig) -> str:
    """Write the sizes of a layer, which are those of all layers of its kind, and return its name."""
    if isinstance(layer.mixer, RGLRU):
        config["lru_width"] = layer.mixer.resolve(model).width
        config["conv1d_width"] = layer.mixer.taps
        return RECURRENT
    if isinstance(layer.attention, Local):
        config["attention_window_size"] = layer.attention.window
        return ATTENTION
    raise MissingComponent("pattern.mixer.rg_lru")


LAYERS = Rule(
    ("block_types", "_block_types", "lru_width", "conv1d_width", "attention_window_size"),
    read=_read_layers,
    write=_write_layers,
)


def _read_width(width: int) -> int:
    """Return the width of the feed-forward; the field counts its gate too."""
    if width % 2:
        raise UserError(f"intermediate_size={width} is not even: it counts a feed-forward and its gate")
    return width // 2


def _write_width(width: int) -> int:
    return 2 * width


RECURRENT_GEMMA_CONFIG = ConfigTable(
    fields=(
        *SIZE_FIELDS,
        Field("num_key_value_heads", "kv_heads", default=None),
        Field("intermediate_size", "mlp", transform=Transform(_read_width, _write_width)),
        Field("rms_norm_eps", "norm.rmsnorm.epsilon", default=1e-6),
        Field("logits_soft_cap", "logit_softcap", default=30.0),
        Field("attention_bias", "query_key_value_bias", default=False, is_flag=True),
    ),
    fixed={
        **LLAMA_FIXED,
        "bias": True,
        "feedforward.glu.activation": "gelu_tanh",
        "norm.rmsnorm.unit_offset": True,
        "scale_embedding": True,
        "bfloat16_embedding_scale": True,
    },
    constants={"hidden_activation": "gelu_pytorch_tanh"},
    rules=(partial_rotary("rope_theta", "partial_rotary_factor", default_share=0.5), LAYERS, TIED_OUTPUT),
    required_values={"hidden_activation": ("gelu_pytorch_tanh",), "embeddings_scale_by_sqrt_dim": (True,)},
    without_effect=("final_w_init_variance_scale", "head_dim", "w_init_variance_scale"),
)

# Weights.

RECURRENT_GEMMA_LAYER: Modules = {
    "temporal_pre_norm": "attention_norm",
    "temporal_block.q_proj": "attention.query",
    "temporal_block.k_proj": "attention.key",
    "temporal_block.v_proj": "attention.value",
    "temporal_block.o_proj": "attention.out",
    "temporal_block.linear_y": "mixer.branch",
    "temporal_block.linear_x": "mixer.input",
    "temporal_block.conv_1d": "mixer.convolution",
    "temporal_block.rg_lru.input_gate_weight": Stored(("mixer.input_gate.weight",)),
    "temporal_block.rg_lru.input_gate_bias": Stored(("mixer.input_gate.bias",)),
    "temporal_block.rg_lru.recurrent_gate_weight": Stored(("mixer.decay_gate.weight",)),
    "temporal_block.rg_lru.recurrent_gate_bias": Stored(("mixer.decay_gate.bias",)),
    "temporal_block.rg_lru.recurrent_param": Stored(("mixer.decay",), is_vector=True),
    "temporal_block.linear_out": "mixer.out",
    "channel_pre_norm": "feedforward_norm",
    "mlp_block.gate_proj": "feedforward.gate",
    "mlp_block.up_proj": "feedforward.up",
    "mlp_block.down_proj": "feedforward.down",
}

RECURRENT_GEMMA = ModelType(
    name="recurrent_gemma",
    architectures=(Architecture("RecurrentGemmaForCausalLM", objective="causal"),),
    config=RECURRENT_GEMMA_CONFIG,
    weights=WeightTable(
        modules={
            "model.embed_tokens": "tokens",
            "model.final_norm": "decoder.stack.final_norm",
            "lm_head": "output.matrix",
        },
        stacks=(StackModules("model.layers.{layer}", "decoder.stack.layers", RECURRENT_GEMMA_LAYER),),
    ),
    tokenizer_class="GemmaTokenizer",
    base_model_prefix="model.",
    ignored_tensors=(r".*rotary_emb\.inv_freq", r"model\.normalizer"),
    copies={OUTPUT_MATRIX: "model.embed_tokens.weight"},
)
"""Botev et al. 2024: Griffin's recurrences and local attention with Gemma's vocabulary and norms."""
