"""T5Gemma in Hugging Face's format."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from t5x_lite.convert.config_table import (
    ConfigTable,
    ForeignConfig,
    ForeignModel,
    Rule,
    Settings,
    check_count,
    require_field,
)
from t5x_lite.convert.gemma import GEMMA_FIXED, LAYERS, NOT_READ, QUERY_SCALAR, gemma2_fields
from t5x_lite.convert.llama import ATTENTION, GATED_FEEDFORWARD, HEAD_DIM
from t5x_lite.convert.model_type import Architecture, ModelType, tied_output
from t5x_lite.convert.rope import ROTARY
from t5x_lite.convert.weight_map import Modules, StackModules, WeightTable
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.schema import dotted

# Config: one of Gemma 2 for each stack.

STACK_CONFIG = ConfigTable(
    gemma2_fields(50.0, 30.0),
    {**GEMMA_FIXED, "family": "encoder_decoder", "norm_place": "sandwich"},
    rules=(QUERY_SCALAR, HEAD_DIM, ROTARY, LAYERS),
    without_effect=(*NOT_READ, "hidden_act", "dropout_rate", "classifier_dropout_rate", "tie_word_embeddings"),
)
START = "bos_token_id"
DEFAULT_START = 2
ENCODER_WIDTH = "cross_attention_hidden_size"
OF_EACH_STACK = ("layers", "pattern")
"""Settings that the stacks may have with different values."""


def _read_stacks(source: ForeignModel, settings: Settings) -> None:
    """Read both stacks, which have all sizes in common but their numbers of layers.

    A sliding window of the encoder does not count the query's own position, that of the decoder does.
    """
    encoder_config = require_field(source.config, "encoder")
    decoder_config = require_field(source.config, "decoder")
    encoder = STACK_CONFIG.read(ForeignModel(_with_window(encoder_config, 1), source.tensor_names))
    width = (encoder["embed"], None)
    decoder_table = replace(STACK_CONFIG, required_values={"is_decoder": (True, None), ENCODER_WIDTH: width})
    decoder = decoder_table.read(ForeignModel(decoder_config, source.tensor_names))
    _refuse_different_stacks(encoder, decoder)
    dropout = source.config.get("dropout_rate", 0.0)
    encoder["feedforward"]["glu"]["dropout"] = dropout
    settings.update(encoder)
    settings["dropout"] = dropout
    settings["decoder_layers"] = decoder["layers"]
    if decoder["pattern"] != encoder["pattern"]:
        settings["decoder_attention"] = [layer["attention"] for layer in decoder["pattern"]]
    settings["start_token"] = decoder_config.get(START, DEFAULT_START)


def _with_window(config: Mapping[str, Any], more: int) -> ForeignConfig:
    """Return the config of a stack with windows of so many positions more."""
    window = config.get("sliding_window", 4096)
    if window is None:
        return {**config}
    return {**config, "sliding_window": check_count("sliding_window", window) + more}


def _refuse_different_stacks(encoder: Settings, decoder: Settings) -> None:
    """Refuse stacks of different sizes, such as an encoder of 9B with a decoder of 2B."""
    encoder_settings = dict(dotted({name: value for name, value in encoder.items() if name not in OF_EACH_STACK}))
    decoder_settings = dict(dotted({name: value for name, value in decoder.items() if name not in OF_EACH_STACK}))
    for name, value in encoder_settings.items():
        other = decoder_settings.get(name)
        if other != value:
            raise UserError(
                f"an encoder and a decoder of different sizes are not supported: {name} {value} and {other}"
            )
    if len(encoder["pattern"]) != len(decoder["pattern"]):
        raise UserError("an encoder and a decoder whose windows come in different turns are not supported")


def _write_stacks(model: ModelConfig, config: ForeignConfig) -> None:
    encoder = STACK_CONFIG.write(model)
    config["encoder"] = {**_with_window(encoder, -1), "model_type": "t5_gemma_module", "is_decoder": False}
    decoder_model = model.decoder_model.model_copy(update={"layers": model.decoder_layers})
    decoder = STACK_CONFIG.write(decoder_model)
    config["decoder"] = {
        **decoder,
        "model_type": "t5_gemma_module",
        "is_decoder": True,
        ENCODER_WIDTH: model.embed,
        START: model.start_token,
    }
    config["dropout_rate"] = model.dropout
    config["vocab_size"] = model.vocab
    config[START] = model.start_token


OUTPUT_MATRIX = "lm_head.out_proj.weight"
T5GEMMA_CONFIG = ConfigTable(
    fields=(),
    fixed={"family": "encoder_decoder", "decoder_embedding": "separate"},
    constants={"is_encoder_decoder": True},
    rules=(Rule(("encoder", "decoder", "dropout_rate"), _read_stacks, _write_stacks), tied_output(OUTPUT_MATRIX)),
    required_values={"is_encoder_decoder": (True, None)},
    without_effect=("vocab_size", "classifier_dropout_rate"),
)

# Weights.

STACK_LAYER: Modules = {
    "pre_self_attn_layernorm": "attention_norm",
    "post_self_attn_layernorm": "attention_output_norm",
    **ATTENTION,
    "pre_feedforward_layernorm": "feedforward_norm",
    "post_feedforward_layernorm": "feedforward_output_norm",
    **GATED_FEEDFORWARD,
}
CROSS_ATTENTION: Modules = {
    "pre_cross_attn_layernorm": "cross_norm",
    "post_cross_attn_layernorm": "cross_output_norm",
    "cross_attn.q_proj": "cross_attention.query",
    "cross_attn.k_proj": "cross_attention.key",
    "cross_attn.v_proj": "cross_attention.value",
    "cross_attn.o_proj": "cross_attention.out",
}
EMBEDDINGS = "model.decoder.embed_tokens.weight"

T5GEMMA = ModelType(
    name="t5gemma",
    architectures=(Architecture("T5GemmaForConditionalGeneration", objective="prefix"),),
    config=T5GEMMA_CONFIG,
    weights=WeightTable(
        modules={
            "model.encoder.embed_tokens": "tokens",
            "model.decoder.embed_tokens": "decoder_tokens",
            "model.encoder.norm": "encoder.stack.final_norm",
            "model.decoder.norm": "decoder.stack.final_norm",
            "lm_head.out_proj": "output.matrix",
        },
        stacks=(
            StackModules("model.encoder.layers.{layer}", "encoder.stack.layers", STACK_LAYER),
            StackModules("model.decoder.layers.{layer}", "decoder.stack.layers", {**STACK_LAYER, **CROSS_ATTENTION}),
        ),
    ),
    tokenizer_class="GemmaTokenizer",
    output_matrix=OUTPUT_MATRIX,
    base_model_prefix="model.",
    copies={OUTPUT_MATRIX: EMBEDDINGS},
)
"""Zhang et al. 2025: an encoder and a decoder of Gemma 2's blocks, each with a token table."""
