"""Falcon in Hugging Face's format."""

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
from t5x_lite.convert.rope import ROTARY
from t5x_lite.convert.weight_map import Fused, Modules, StackModules, WeightTable
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig

# Config: what takes more than one field to convert.

SUBLAYERS_BY_NORMS = {2: "parallel", 1: "parallel_shared_norm"}
"""Our sublayers by `num_ln_in_parallel_attn`."""
NORMS_BY_SUBLAYERS = {sublayers: norms for norms, sublayers in SUBLAYERS_BY_NORMS.items()}


def _read_architecture(source: ForeignModel, settings: Settings) -> None:
    """Read how sublayers follow each other and how many key heads there are.

    The architecture of the 40B model has groups of queries and one or two norms; that of the 7B model has one key head
    or as many as queries, and one norm if its sublayers are parallel.
    """
    config = source.config
    heads = settings["heads"]
    key_heads = config.get("num_kv_heads") or heads
    norms = config.get("num_ln_in_parallel_attn")
    is_parallel = config.get("parallel_attn", True)
    if config.get("new_decoder_architecture", False):
        norms = norms or 2
        if norms not in SUBLAYERS_BY_NORMS or not is_parallel:
            raise UserError(
                f"num_ln_in_parallel_attn={norms} and parallel_attn={is_parallel} are not supported with "
                "new_decoder_architecture (only 1 or 2, and True)"
            )
        settings["sublayers"] = SUBLAYERS_BY_NORMS[norms]
    else:
        if is_parallel and norms == 2:
            raise UserError("num_ln_in_parallel_attn=2 is not supported without new_decoder_architecture")
        if config.get("multi_query", True):
            key_heads = 1
        elif key_heads != heads:
            raise UserError(f"num_kv_heads={key_heads} is not supported without new_decoder_architecture")
        settings["sublayers"] = "parallel_shared_norm" if is_parallel else "sequential"
    settings["kv_heads"] = key_heads
    if key_heads == heads:
        settings["kv_heads"] = None


def _write_architecture(model: ModelConfig, config: ForeignConfig) -> None:
    is_new = model.sublayers == "parallel" or model.kv_heads not in {1, model.heads}
    if is_new and model.sublayers == "sequential":
        raise UserError(f"{model.kv_heads} key heads are for parallel sublayers")
    config["new_decoder_architecture"] = is_new
    config["parallel_attn"] = model.sublayers != "sequential"
    config["multi_query"] = is_new or model.kv_heads == 1
    if is_new:
        config["num_kv_heads"] = model.kv_heads
        config["num_ln_in_parallel_attn"] = NORMS_BY_SUBLAYERS[model.sublayers]
    else:
        config["num_kv_heads"] = model.heads  # has no effect
        config["num_ln_in_parallel_attn"] = None


ARCHITECTURE = Rule(
    ("new_decoder_architecture", "parallel_attn", "multi_query", "num_kv_heads", "num_ln_in_parallel_attn"),
    read=_read_architecture,
    write=_write_architecture,
)

FALCON_CONFIG = ConfigTable(
    fields=(
        *SIZE_FIELDS,
        Field("ffn_hidden_size", "mlp", default=None),
        Field("activation", "feedforward.mlp.activation", default="gelu", transform=ACTIVATION),
        Field("layer_norm_epsilon", "norm.layernorm.epsilon", default=1e-5),
        Field("hidden_dropout", "dropout", default=0.0),
        Field("attention_dropout", "dropout", is_read=False),
        Field("bias", "bias", default=False, is_flag=True),
    ),
    fixed={"family": "decoder", "init.normal.scale_residual": False},
    rules=(ARCHITECTURE, ROTARY, TIED_OUTPUT),
    required_values={
        "alibi": (False, None),  # Transformers rounds its biases to bfloat16
        "apply_residual_connection_post_layernorm": (False, None),
        "output_attentions": (False, None),  # Transformers' scores are not causal then
    },
)

# Weights.

SUBLAYER_MODULES: Modules = {
    "self_attention.query_key_value": Fused(
        ("attention.query", "attention.key", "attention.value"), by_axis="kv_heads"
    ),
    "self_attention.dense": "attention.out",
    "mlp.dense_h_to_4h": "feedforward.up",
    "mlp.dense_4h_to_h": "feedforward.down",
}
SEQUENTIAL_NORMS: Modules = {"input_layernorm": "attention_norm", "post_attention_layernorm": "feedforward_norm"}
PARALLEL_NORMS: Modules = {"ln_attn": "attention_norm", "ln_mlp": "feedforward_norm"}


def _weights(norms: Modules) -> WeightTable:
    return WeightTable(
        modules={
            "transformer.word_embeddings": "tokens",
            "transformer.ln_f": "decoder.stack.final_norm",
            "lm_head": "output.matrix",
        },
        stacks=(StackModules("transformer.h.{layer}", "decoder.stack.layers", {**norms, **SUBLAYER_MODULES}),),
    )


SEQUENTIAL_WEIGHTS = _weights(SEQUENTIAL_NORMS)
PARALLEL_WEIGHTS = _weights(PARALLEL_NORMS)


def _weights_of(model: ModelConfig) -> WeightTable:
    """Return the table of a model: norms of parallel sublayers have names of their own if there are two."""
    return PARALLEL_WEIGHTS if model.sublayers == "parallel" else SEQUENTIAL_WEIGHTS


FALCON = ModelType(
    name="falcon",
    architectures=(Architecture("FalconForCausalLM", objective="causal"),),
    config=FALCON_CONFIG,
    weights=SEQUENTIAL_WEIGHTS,
    select_weights=_weights_of,
    tokenizer_class="PreTrainedTokenizerFast",
    base_model_prefix="transformer.",
    ignored_tensors=(r".*rotary_emb\.inv_freq",),
    copies={OUTPUT_MATRIX: "transformer.word_embeddings.weight"},
)
"""Almazrouei et al. 2023: sublayers side by side, rotary positions, one key head (7B) or eight, no biases."""
