"""gpt-oss in Hugging Face's format."""

from dataclasses import replace
from functools import partial

from t5x_lite.convert.config_table import (
    ConfigTable,
    Field,
    ForeignModel,
    Rule,
    Settings,
)
from t5x_lite.convert.layer_types import FULL, SLIDING, read_windowed_pattern, write_windowed_layers
from t5x_lite.convert.llama import (
    ATTENTION,
    EXPERTS_IN_EVERY_LAYER,
    HEAD_DIM,
    LLAMA_FIXED,
    llama_fields,
    llama_like,
)
from t5x_lite.convert.model_type import TIED_OUTPUT
from t5x_lite.convert.rope import rotary
from t5x_lite.convert.weight_map import Modules, Stored
from t5x_lite.errors import UserError

# Config: what takes more than one field to convert.

DEFAULT_WINDOW = 128
ROTARY = rotary(default_theta=150000.0)


def _read_layers(source: ForeignModel, settings: Settings) -> None:
    """Read which layers attend within a window: those that are listed, or else every other one from the first on."""
    layers = settings["layers"]
    kinds = source.config.get("layer_types") or [FULL if layer % 2 else SLIDING for layer in range(layers)]
    settings["pattern"] = read_windowed_pattern(kinds, layers, source.config.get("sliding_window", DEFAULT_WINDOW))


def _read_rotary(source: ForeignModel, settings: Settings) -> None:
    """Read the positions. Transformers takes YaRN where the field is missing, unlike in other models."""
    if not source.config.get("rope_parameters") and not source.config.get("rope_scaling"):
        raise UserError("the field 'rope_parameters' is missing")
    ROTARY.read(source, settings)


YARN_ROTARY = replace(ROTARY, read=_read_rotary)
LAYERS = Rule(
    ("layer_types", "sliding_window"),
    read=_read_layers,
    write=partial(write_windowed_layers, default_window=DEFAULT_WINDOW),
)

# Config: table.

_SIZES = llama_fields(1e-5, Field("head_dim", "head_dim", default=64))
CONFIG = ConfigTable(
    fields=(
        *[field for field in _SIZES if field.name != "hidden_act"],
        Field("num_local_experts", "moe.experts", default=128),
        Field("num_experts_per_tok", "moe.router.top_k.k", default=4),
        Field("router_aux_loss_coef", "moe.router.top_k.balance", default=0.001),
        Field("swiglu_limit", "feedforward.glu.limit", default=7.0),
    ),
    fixed={
        **LLAMA_FIXED,
        "attention_sinks": True,
        "feedforward.glu.activation": "quick_gelu",  # x·sigmoid(1.702 x)
        "feedforward.glu.offset": 1.0,
        "moe.router.top_k.bias": True,
        "moe.router.top_k.over": "model",
        "moe.dispatch": "dropless",
    },
    constants={"hidden_act": "silu", "swiglu_alpha": 1.702, "attention_bias": True},
    rules=(HEAD_DIM, YARN_ROTARY, LAYERS, TIED_OUTPUT, EXPERTS_IN_EVERY_LAYER),
    required_values={"hidden_act": ("silu", None), "swiglu_alpha": (1.702, None), "attention_bias": (True, None)},
    without_effect=("experts_per_token", "initial_context_length"),  # again under other names
)

# Weights: a tensor stores all experts as [in, out]; columns of gate and up take turns.

LAYER: Modules = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "feedforward_norm",
    **ATTENTION,
    "self_attn.sinks": Stored(("attention.sinks",)),
    "mlp.router": "feedforward.router",
    "mlp.experts.gate_up_proj": Stored(
        ("feedforward.experts.gate.weight", "feedforward.experts.up.weight"), interleaved=True
    ),
    "mlp.experts.gate_up_proj_bias": Stored(
        ("feedforward.experts.gate.bias", "feedforward.experts.up.bias"), interleaved=True
    ),
    "mlp.experts.down_proj": Stored(("feedforward.experts.down.weight",)),
    "mlp.experts.down_proj_bias": Stored(("feedforward.experts.down.bias",)),
}

# Model type.

GPT_OSS = llama_like("gpt_oss", "GptOssForCausalLM", CONFIG, LAYER, "PreTrainedTokenizerFast")
"""OpenAI 2025: attention sinks, a window in every other layer, and experts with a clamped gate in every layer."""
