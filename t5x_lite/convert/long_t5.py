"""LongT5 in Hugging Face's format."""

from dataclasses import replace

from t5x_lite.convert.config_table import ForeignConfig, ForeignModel, Rule, Settings, check_count
from t5x_lite.convert.t5 import (
    T5_CONFIG,
    encoder_decoder_weights,
    gated_feed_forward,
    plain_feed_forward,
    t5_model_type,
)
from t5x_lite.convert.weight_map import WeightTable
from t5x_lite.errors import UserError
from t5x_lite.models.attention.kinds import Local, TransientGlobal
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.feedforward.config import GLU

LONG_ATTENTION = {"local": "local", "transient-global": "transient_global"}
"""Names of the attention of LongT5's encoder in Transformers, and ours."""


def _read_encoder_attention(source: ForeignModel, settings: Settings) -> None:
    """Read the encoder's attention; `local_radius` does not count the query's own position."""
    config = source.config
    name = config.get("encoder_attention_type", "local")
    if name not in LONG_ATTENTION:
        raise UserError(f"encoder_attention_type={name!r} is not supported; supported are {', '.join(LONG_ATTENTION)}")
    attention: Settings = {"window": check_count("local_radius", config.get("local_radius", 127)) + 1}
    if name == "transient-global":
        attention["block"] = check_count("global_block_size", config.get("global_block_size", 16))
    settings["pattern"] = [{"attention": {LONG_ATTENTION[name]: attention}}]
    settings["decoder_attention"] = ["dense"]


def _write_encoder_attention(model: ModelConfig, config: ForeignConfig) -> None:
    attention = model.pattern[0].attention
    if len(model.pattern) > 1 or not isinstance(attention, Local | TransientGlobal):
        raise UserError("longt5 has one attention in all layers of the encoder: local or transient_global")
    config["local_radius"] = attention.window - 1
    if isinstance(attention, TransientGlobal):
        config["encoder_attention_type"] = "transient-global"
        config["global_block_size"] = attention.block
    else:
        config["encoder_attention_type"] = "local"


ENCODER_ATTENTION = Rule(
    ("encoder_attention_type", "local_radius", "global_block_size"),
    read=_read_encoder_attention,
    write=_write_encoder_attention,
)

LONG_T5_CONFIG = replace(T5_CONFIG, rules=(*T5_CONFIG.rules, ENCODER_ATTENTION))


def _long_weights_of(model: ModelConfig) -> WeightTable:
    feed_forward = gated_feed_forward if isinstance(model.feedforward, GLU) else plain_feed_forward
    if isinstance(model.pattern[0].attention, TransientGlobal):
        return encoder_decoder_weights(feed_forward, "TransientGlobalSelfAttention")
    return encoder_decoder_weights(feed_forward, "LocalSelfAttention")


LONG_T5 = replace(
    t5_model_type("longt5", "LongT5ForConditionalGeneration", LONG_T5_CONFIG),
    weights=encoder_decoder_weights(gated_feed_forward, "LocalSelfAttention"),
    select_weights=_long_weights_of,
)
"""Guo et al. 2022: T5 v1.1 whose encoder attends within a window, with or without sums of blocks."""
