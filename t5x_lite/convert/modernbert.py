"""ModernBERT in Hugging Face's format."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from t5x_lite.convert.bert import ENCODER_TIED, headless, masked_lm
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
    read_activation,
)
from t5x_lite.convert.layer_positions import read_layer_positions, write_layer_positions
from t5x_lite.convert.layer_types import FULL, SLIDING
from t5x_lite.convert.llama import NO_BIAS, read_attention
from t5x_lite.convert.model_type import HEAD_PREFIXES, ModelType
from t5x_lite.convert.weight_map import Fused, Modules, StackModules, WeightTable
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig

# Config: what takes more than one field to convert.

DEFAULT_PERIOD = 3
"""The first of so many layers attends to all keys where a config does not list the layers."""
DEFAULT_LOCAL_ATTENTION = 128
FIELDS_OF_BASES = {FULL: ("global_rope_theta", 160_000.0), SLIDING: ("local_rope_theta", 10_000.0)}


@dataclass(frozen=True)
class WindowFields:
    """Fields that say how many keys a query sees in a layer with a window, its own included.

    Attributes:
        names: the fields.
        read: returns the window of a config.
        write: writes a window to a config.
    """

    names: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], int]
    write: Callable[[int, ForeignConfig], None]


def half_of_local_attention(config: Mapping[str, Any]) -> int:
    """Return half of `local_attention`, the keys on each side of a query."""
    return check_count("local_attention", config.get("local_attention", DEFAULT_LOCAL_ATTENTION)) // 2


def _read_window(config: Mapping[str, Any]) -> int:
    return half_of_local_attention(config) + 1


def _write_window(window: int, config: ForeignConfig) -> None:
    config["local_attention"] = 2 * (window - 1)


def _read_layers(source: ForeignModel, settings: Settings, fields: WindowFields) -> None:
    """Read which layers attend within a window, and their positions; the first layer has no norm before attention."""
    config = source.config
    layers = settings["layers"]
    period = check_count("global_attn_every_n_layers", config.get("global_attn_every_n_layers", DEFAULT_PERIOD))
    kinds = config.get("layer_types")
    if kinds is None:
        kinds = [SLIDING if layer % period else FULL for layer in range(layers)]
    if len(kinds) != layers or not set(kinds) <= {FULL, SLIDING}:
        raise UserError(f"layer_types must list {FULL} or {SLIDING} for each of {layers} layers")
    window = fields.read(config)
    windows = {FULL: None, SLIDING: window}
    settings["pattern"] = [{"attention": read_attention(windows[kind])} for kind in kinds]
    settings["pattern"][0]["norm"] = False
    read_layer_positions(config, config.get("rope_parameters") or {}, settings, FIELDS_OF_BASES)


def _write_layers(model: ModelConfig, config: ForeignConfig, fields: WindowFields) -> None:
    config["layer_types"], window = layers_and_window(model, dense=FULL, local=SLIDING)
    config["local_attention"] = DEFAULT_LOCAL_ATTENTION
    if window is not None:
        fields.write(window, config)
    write_layer_positions(model, config)


def layers_rule(fields: WindowFields) -> Rule:
    """Return the rule of the kinds of layers and of their positions."""
    kinds = ("layer_types", "global_attn_every_n_layers")
    positions = ("rope_parameters", "max_position_embeddings", "global_rope_theta", "local_rope_theta")
    return Rule(
        (*kinds, *fields.names, *positions),
        read=partial(_read_layers, fields=fields),
        write=partial(_write_layers, fields=fields),
    )


def _read_output_activation(source: ForeignModel, settings: Settings) -> None:
    """Refuse a token output whose activation differs from that of the feed-forward layers."""
    activation = source.config.get("classifier_activation", "gelu")
    expected = settings["feedforward"]["glu"]["activation"]
    if read_activation(activation) != expected:
        raise UserError(f"classifier_activation={activation} is not supported beside another hidden_activation")


def _write_output_activation(model: ModelConfig, config: ForeignConfig) -> None:
    config["classifier_activation"] = config["hidden_activation"]


OUTPUT_ACTIVATION = Rule(("classifier_activation",), read=_read_output_activation, write=_write_output_activation)

MODERNBERT_CONFIG = ConfigTable(
    fields=(
        *SIZE_FIELDS,
        Field("intermediate_size", "mlp"),
        Field("hidden_activation", "feedforward.glu.activation", default="gelu", transform=ACTIVATION),
        Field("norm_eps", "norm.layernorm.epsilon", default=1e-5),
        Field("norm_bias", "norm.layernorm.bias", default=False, is_flag=True),
        Field("embedding_dropout", "dropout", default=0.0),
        Field("attention_dropout", "dropout", is_read=False),
        Field("mlp_dropout", "dropout", is_read=False),
    ),
    fixed={"family": "encoder", "embedding_norm": True, "bias": False},
    rules=(layers_rule(WindowFields(("local_attention",), _read_window, _write_window)), OUTPUT_ACTIVATION),
    required_values={
        "attention_bias": NO_BIAS,
        "mlp_bias": NO_BIAS,
        "classifier_bias": NO_BIAS,
        "decoder_bias": (True, None),
        "rope_scaling": (None,),
        "sparse_prediction": (False, None),  # Transformers returns the logits of masked tokens alone
    },
    without_effect=(
        *ENCODER_TIED,
        "attention_dropout",
        "classifier_pooling",
        "cls_token_id",
        "deterministic_flash_attn",
        "initializer_cutoff_factor",
        "layer_norm_eps",  # in released files, beside norm_eps
        "mlp_dropout",
        "reference_compile",
        "repad_logits_with_grad",
        "sparse_pred_ignore_index",
    ),
)

# Weights.

MODERNBERT_LAYER: Modules = {
    "attn_norm": "attention_norm",
    "attn.Wqkv": Fused(("attention.query", "attention.key", "attention.value")),
    "attn.Wo": "attention.out",
    "mlp_norm": "feedforward_norm",
    "mlp.Wi": Fused(("feedforward.gate", "feedforward.up")),
    "mlp.Wo": "feedforward.down",
}

MODERNBERT = ModelType(
    name="modernbert",
    architectures=(masked_lm("ModernBertForMaskedLM"),),
    headless=headless("ModernBertModel"),
    head_prefixes=(*HEAD_PREFIXES, "head.", "decoder."),
    config=MODERNBERT_CONFIG,
    weights=WeightTable(
        modules={
            "model.embeddings.tok_embeddings": "tokens",
            "model.embeddings.norm": "encoder.embedding.norm",
            "model.final_norm": "encoder.stack.final_norm",
            "head.dense": "output.transform",
            "head.norm": "output.norm",
            "decoder": "output",
        },
        stacks=(StackModules("model.layers.{layer}", "encoder.stack.layers", MODERNBERT_LAYER),),
    ),
    tokenizer_class="PreTrainedTokenizerFast",
    base_model_prefix="model.",
    ignored_tensors=(r".*rotary_emb\..*inv_freq",),
    copies={"decoder.weight": "model.embeddings.tok_embeddings.weight"},
)
"""Warner et al. 2024, §2.1: GeGLU, no biases, and windows in two of three layers, with a base of wavelengths each."""
