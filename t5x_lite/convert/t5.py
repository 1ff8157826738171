"""T5 v1.0 and v1.1, mT5, umT5, ByT5 and Switch Transformers in Hugging Face's format."""

from collections.abc import Callable, Mapping
from typing import Any

from t5x_lite.convert.config_table import (
    ConfigTable,
    Field,
    ForeignConfig,
    ForeignModel,
    Rule,
    Settings,
    read_activation,
    require_field,
    write_activation,
)
from t5x_lite.convert.model_type import OUTPUT_MATRIX, Architecture, ModelType
from t5x_lite.convert.weight_map import Modules, StackModules, WeightTable
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.feedforward.config import GLU

# Configs: what takes more than one field to convert.

GATED_PREFIX = "gated-"


def _read_feed_forward(source: ForeignModel, settings: Settings) -> None:
    """Read `feed_forward_proj`: the name of an activation, behind `gated-` where the feed-forward has a gate."""
    projection = source.config.get("feed_forward_proj", "relu")
    kind = "glu" if projection.startswith(GATED_PREFIX) else "mlp"
    if projection == "gated-gelu":  # stands for the tanh form, unlike "gelu" alone
        activation = read_activation("gelu_new")
    else:
        activation = read_activation(projection.removeprefix(GATED_PREFIX))
    _refuse_contradiction(source.config, "is_gated_act", kind == "glu", projection)
    if "dense_act_fn" in source.config:
        _refuse_contradiction(source.config, "dense_act_fn", write_activation(activation), projection)
    settings["feedforward"] = {kind: {"activation": activation, "dropout": settings["dropout"]}}


def _refuse_contradiction(config: Mapping[str, Any], name: str, expected: object, projection: str) -> None:
    """Refuse a config whose fields about the feed-forward differ: versions of Transformers choose differently."""
    value = config.get(name, expected)
    if name == "dense_act_fn":
        value = write_activation(read_activation(value))
    if value != expected:
        raise UserError(f"{name}={config[name]!r} contradicts feed_forward_proj={projection!r}")


def _write_feed_forward(model: ModelConfig, config: ForeignConfig) -> None:
    activation = write_activation(model.dense_feedforward.activation)
    if isinstance(model.feedforward, GLU):
        config["feed_forward_proj"] = GATED_PREFIX + activation.replace("gelu_new", "gelu")
    else:
        config["feed_forward_proj"] = activation


FEED_FORWARD = Rule(
    ("feed_forward_proj", "dense_act_fn", "is_gated_act"), read=_read_feed_forward, write=_write_feed_forward
)


def _read_output(source: ForeignModel, settings: Settings) -> None:
    """Read whether the output matrix is tied, and whether states are divided by sqrt(d_model) before it.

    The stored tensors, not the config, tell whether it is tied.
    """
    settings["tied"] = OUTPUT_MATRIX not in source.tensor_names
    is_tied_in_config = source.config.get("tie_word_embeddings") is not False
    settings["scale_output"] = source.config.get("scale_decoder_outputs", is_tied_in_config)


def _read_unscaled_output(source: ForeignModel, settings: Settings) -> None:
    """Read whether the output matrix is tied, for models that never scale the states before it."""
    settings["tied"] = OUTPUT_MATRIX not in source.tensor_names
    settings["scale_output"] = False


def _write_output(model: ModelConfig, config: ForeignConfig) -> None:
    config["tie_word_embeddings"] = model.scale_output
    config["scale_decoder_outputs"] = model.scale_output


SCALED_OUTPUT = Rule(("scale_decoder_outputs", "tie_word_embeddings"), read=_read_output, write=_write_output)
UNSCALED_OUTPUT = Rule(
    ("scale_decoder_outputs", "tie_word_embeddings"), read=_read_unscaled_output, write=_write_output
)


def _read_relu_feed_forward(source: ForeignModel, settings: Settings) -> None:
    settings["feedforward"] = {"mlp": {"activation": "relu", "dropout": settings["dropout"]}}


RELU_FEED_FORWARD = Rule((), read=_read_relu_feed_forward)


def _refuse_unsupported_switch(source: ForeignModel, settings: Settings) -> None:
    if source.config.get("router_bias") or source.config.get("dense_act_fn", "relu") != "relu":
        raise UserError("biases of routers and activations of experts other than relu are not supported")


SUPPORTED_SWITCH = Rule(("router_bias", "dense_act_fn"), read=_refuse_unsupported_switch)


def _read_sparse_step(source: ForeignModel, settings: Settings) -> None:
    """Read `encoder_sparse_step` n: of n layers that follow each other, one has experts (layers 1, 1 + n, …)."""
    layers = require_field(source.config, "num_layers")
    step = _count_sparse_step(source.config, "encoder", layers)
    if step != _count_sparse_step(source.config, "decoder", source.config.get("num_decoder_layers") or layers):
        raise UserError("an encoder_sparse_step and a decoder_sparse_step that differ are not supported")
    if not 1 <= step <= layers:
        raise UserError(f"encoder_sparse_step={step} is not supported for {layers} layers")
    experts = settings.pop("moe")
    pattern: list[Settings] = [{} for _ in range(step)]
    place_of_experts = min(1, step - 1)
    pattern[place_of_experts] = {"feedforward": {"moe": experts}}
    settings["pattern"] = pattern


def _count_sparse_step(config: Mapping[str, Any], side: str, layers: int) -> int:
    """Return the step of a stack. The number of layers with experts comes first, as in Transformers."""
    sparse_layers = config.get(f"num_sparse_{side}_layers")
    if sparse_layers is None:
        return config.get(f"{side}_sparse_step", 1)
    if sparse_layers < 1:
        raise UserError(f"num_sparse_{side}_layers={sparse_layers} is not supported")
    return layers // sparse_layers


def _write_sparse_step(model: ModelConfig, config: ForeignConfig) -> None:
    step = len(model.pattern)
    config["num_sparse_encoder_layers"] = model.layers // step
    config["num_sparse_decoder_layers"] = model.decoder_layers // step
    config["encoder_sparse_step"] = step
    config["decoder_sparse_step"] = step
    config["dense_act_fn"] = "relu"


SPARSE_STEP = Rule(
    ("encoder_sparse_step", "decoder_sparse_step", "num_sparse_encoder_layers", "num_sparse_decoder_layers"),
    read=_read_sparse_step,
    write=_write_sparse_step,
)

# Configs: tables.

T5_FIELDS = (
    Field("vocab_size", "vocab"),
    Field("d_model", "embed"),
    Field("d_kv", "head_dim"),
    Field("d_ff", "mlp"),
    Field("num_layers", "layers"),
    Field("num_decoder_layers", "decoder_layers", default=None),
    Field("num_heads", "heads"),
    Field("relative_attention_num_buckets", "positions.relative.buckets", default=32),
    Field("relative_attention_max_distance", "positions.relative.distance", default=128),
    Field("layer_norm_epsilon", "norm.rmsnorm.epsilon", default=1e-6),
    Field("dropout_rate", "dropout", default=0.0),
)
T5_FIXED = {
    "family": "encoder_decoder",
    "bias": False,
    "attention_scale": 1.0,
    "init.fan_in.embedding_deviation": 1.0,
}
ONE_POSITION_TABLE_A_STACK = {"positions.relative.shared": True}
ONE_POSITION_TABLE_A_LAYER = {"positions.relative.shared": False}
T5_CONSTANTS = {
    "is_encoder_decoder": True,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
T5_REQUIRED_VALUES = {"decoder_start_token_id": (0, None)}
"""Targets begin with the token 0, as in every published model."""
T5_WITHOUT_EFFECT = (
    "n_positions",  # the length of texts in pretraining; relative positions have no limit
    "scalable_attention",  # umT5's tables of positions in every layer, which the model type tells
)


def _t5_config(positions: Settings, output: Rule) -> ConfigTable:
    """Return the config of a type with T5's fields, its table of positions, and its output."""
    return ConfigTable(
        T5_FIELDS,
        fixed={**T5_FIXED, **positions},
        constants=T5_CONSTANTS,
        rules=(FEED_FORWARD, output),
        required_values=T5_REQUIRED_VALUES,
        without_effect=T5_WITHOUT_EFFECT,
    )


T5_CONFIG = _t5_config(ONE_POSITION_TABLE_A_STACK, SCALED_OUTPUT)
MT5_CONFIG = _t5_config(ONE_POSITION_TABLE_A_STACK, UNSCALED_OUTPUT)
UMT5_CONFIG = _t5_config(ONE_POSITION_TABLE_A_LAYER, SCALED_OUTPUT)
SWITCH_CONFIG = ConfigTable(
    fields=(
        *T5_FIELDS,
        Field("num_experts", "moe.experts"),
        Field("expert_capacity", "moe.dispatch.capacity.tokens"),
        Field("router_jitter_noise", "moe.router.switch.jitter", default=0.01),
        Field("router_aux_loss_coef", "moe.router.switch.balance", default=0.001),
        Field("router_z_loss_coef", "moe.router.switch.z_loss", default=0.001),
    ),
    fixed={**T5_FIXED, **ONE_POSITION_TABLE_A_STACK},
    constants=T5_CONSTANTS,
    rules=(SUPPORTED_SWITCH, RELU_FEED_FORWARD, SCALED_OUTPUT, SPARSE_STEP),
    required_values={
        **T5_REQUIRED_VALUES,
        "router_dtype": ("float32", None),
        "router_ignore_padding_tokens": (False, None),
    },
    without_effect=T5_WITHOUT_EFFECT,
)

# Weights.

SELF_ATTENTION = "SelfAttention"


def _modules_outside_layers(encoder_attention: str) -> Modules:
    """Return the modules outside the layers; the encoder's self-attention is called `encoder_attention`."""
    first_layer = f"encoder.block.0.layer.0.{encoder_attention}"
    return {
        "shared": "tokens",
        "encoder.final_layer_norm": "encoder.stack.final_norm",
        "decoder.final_layer_norm": "decoder.stack.final_norm",
        f"{first_layer}.relative_attention_bias": "encoder.stack.positions",
        f"{first_layer}.global_relative_attention_bias": "encoder.stack.global_positions",
        f"decoder.block.0.layer.0.{SELF_ATTENTION}.relative_attention_bias": "decoder.stack.positions",
        "lm_head": "output.matrix",
    }


def _self_attention(name: str) -> Modules:
    """Return the modules of self-attention, which is called `name`."""
    return {
        "layer.0.layer_norm": "attention_norm",
        f"layer.0.{name}.q": "attention.query",
        f"layer.0.{name}.k": "attention.key",
        f"layer.0.{name}.v": "attention.value",
        f"layer.0.{name}.o": "attention.out",
        f"layer.0.{name}.relative_attention_bias": "attention.positions",
        f"layer.0.{name}.global_input_layer_norm": "attention.global_norm",
    }


CROSS_ATTENTION: Modules = {
    "layer.1.layer_norm": "cross_norm",
    "layer.1.EncDecAttention.q": "cross_attention.query",
    "layer.1.EncDecAttention.k": "cross_attention.key",
    "layer.1.EncDecAttention.v": "cross_attention.value",
    "layer.1.EncDecAttention.o": "cross_attention.out",
}


def plain_feed_forward(sublayer: str) -> Modules:
    return {
        f"{sublayer}.layer_norm": "feedforward_norm",
        f"{sublayer}.DenseReluDense.wi": "feedforward.up",
        f"{sublayer}.DenseReluDense.wo": "feedforward.down",
    }


def gated_feed_forward(sublayer: str) -> Modules:
    return {
        f"{sublayer}.layer_norm": "feedforward_norm",
        f"{sublayer}.DenseReluDense.wi_0": "feedforward.gate",
        f"{sublayer}.DenseReluDense.wi_1": "feedforward.up",
        f"{sublayer}.DenseReluDense.wo": "feedforward.down",
    }


def _switch_feed_forward(sublayer: str) -> Modules:
    """Return the modules of a feed-forward with or without experts; a layer has one of the two."""
    return {
        f"{sublayer}.layer_norm": "feedforward_norm",
        f"{sublayer}.mlp.wi": "feedforward.up",
        f"{sublayer}.mlp.wo": "feedforward.down",
        f"{sublayer}.mlp.router.classifier": "feedforward.router",
        f"{sublayer}.mlp.experts.expert_{{expert}}.wi": "feedforward.experts.up",
        f"{sublayer}.mlp.experts.expert_{{expert}}.wo": "feedforward.experts.down",
    }


def encoder_decoder_weights(
    feed_forward: Callable[[str], Modules], encoder_attention: str = SELF_ATTENTION
) -> WeightTable:
    """Return the weights with the given modules in each feed-forward, the last sublayer of a block."""
    encoder_layer = {**_self_attention(encoder_attention), **feed_forward("layer.1")}
    decoder_layer = {**_self_attention(SELF_ATTENTION), **CROSS_ATTENTION, **feed_forward("layer.2")}
    return WeightTable(
        _modules_outside_layers(encoder_attention),
        stacks=(
            StackModules("encoder.block.{layer}", "encoder.stack.layers", encoder_layer),
            StackModules("decoder.block.{layer}", "decoder.stack.layers", decoder_layer),
        ),
    )


PLAIN_WEIGHTS = encoder_decoder_weights(plain_feed_forward)
GATED_WEIGHTS = encoder_decoder_weights(gated_feed_forward)


def _weights_of(model: ModelConfig) -> WeightTable:
    return GATED_WEIGHTS if isinstance(model.feedforward, GLU) else PLAIN_WEIGHTS


COPIES = {
    "encoder.embed_tokens.weight": "shared.weight",
    "decoder.embed_tokens.weight": "shared.weight",
    OUTPUT_MATRIX: "shared.weight",
}


def t5_model_type(name: str, architecture: str, config: ConfigTable) -> ModelType:
    return ModelType(
        name=name,
        architectures=(Architecture(architecture, objective="span_corruption"),),
        config=config,
        weights=PLAIN_WEIGHTS,
        select_weights=_weights_of,
        copies=COPIES,
        tokenizer_class="T5Tokenizer",
    )


# Model types.

T5 = t5_model_type("t5", "T5ForConditionalGeneration", T5_CONFIG)
"""Raffel et al. 2020; v1.1 is gated and untied."""

MT5 = t5_model_type("mt5", "MT5ForConditionalGeneration", MT5_CONFIG)
"""Xue et al. 2021: T5 v1.1. Transformers never scales the states before a tied output of this model type."""

UMT5 = t5_model_type("umt5", "UMT5ForConditionalGeneration", UMT5_CONFIG)
"""Chung et al. 2023: mT5 with a table of relative positions in every layer."""

SWITCH = ModelType(
    name="switch_transformers",
    architectures=(Architecture("SwitchTransformersForConditionalGeneration", objective="span_corruption"),),
    config=SWITCH_CONFIG,
    weights=encoder_decoder_weights(_switch_feed_forward),
    tokenizer_class="T5Tokenizer",
    copies=COPIES,
)
"""Fedus et al. 2022: T5 v1.0 with experts in every n-th layer, each with room for a fixed number of tokens of a row."""
