"""Mamba-2 in Hugging Face's format."""

import math

from t5x_lite.convert.config_table import (
    ConfigTable,
    Field,
    ForeignConfig,
    ForeignModel,
    MissingComponent,
    Rule,
    Settings,
)
from t5x_lite.convert.model_type import OUTPUT_MATRIX, TIED_OUTPUT, Architecture, ModelType
from t5x_lite.convert.weight_map import Fused, Modules, StackModules, Stored, WeightTable
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.mixers import Mamba2

# Config.

MIXER_FIELDS = {
    "expand": ("expand", 2),
    "head_dim": ("head_dim", 64),
    "state_size": ("state", 128),
    "n_groups": ("groups", 8),
    "conv_kernel": ("taps", 4),
    "chunk_size": ("chunk", 256),
    "layer_norm_epsilon": ("epsilon", 1e-5),
}
"""Foreign fields of the mixer, our settings, and the values that Transformers takes where a config has none."""
DEFAULT_HEADS = 128
HEADS = "num_heads"


def _read_mixer(source: ForeignModel, settings: Settings) -> None:
    """Read the mixer that all layers have, whose number of heads follows from the other sizes."""
    mixer = {ours: source.config.get(name, default) for name, (ours, default) in MIXER_FIELDS.items()}
    heads = source.config.get(HEADS, DEFAULT_HEADS)
    if mixer["expand"] * settings["embed"] != heads * mixer["head_dim"]:
        raise UserError(
            f"{HEADS}={heads} of head_dim={mixer['head_dim']} is not expand={mixer['expand']} times "
            f"hidden_size={settings['embed']}"
        )
    settings["pattern"] = [{"mixer": {"mamba2": mixer}}]


def _write_mixer(model: ModelConfig, config: ForeignConfig) -> None:
    mixer = model.pattern[0].mixer
    if not isinstance(mixer, Mamba2):
        raise MissingComponent("pattern.mixer.mamba2")
    for name, (ours, _) in MIXER_FIELDS.items():
        config[name] = getattr(mixer, ours)
    config[HEADS] = mixer.heads(model)


NO_LIMITS = ([0.0, math.inf], [0.0, {"__float__": "Infinity"}])
"""Bounds of a step that change nothing, as JSON and as Transformers since version 5 write them."""

MAMBA2_CONFIG = ConfigTable(
    fields=(
        Field("vocab_size", "vocab"),
        Field("hidden_size", "embed"),
        Field("num_hidden_layers", "layers"),
        Field("layer_norm_epsilon", "norm.rmsnorm.epsilon", default=1e-5),
    ),
    fixed={
        "family": "decoder",
        "heads": 1,
        "positions": "none",
        "feedforward": "none",
        "bias": False,
        "init.normal.scale_residual": False,
    },
    rules=(Rule((HEADS, *MIXER_FIELDS), read=_read_mixer, write=_write_mixer), TIED_OUTPUT),
    required_values={
        "hidden_act": ("silu",),
        "use_bias": (False,),
        "use_conv_bias": (True,),
        "time_step_limit": NO_LIMITS,
        "rms_norm": (True, None),
    },
    without_effect=(
        "intermediate_size",  # follows from `expand`
        "norm_before_gate",  # Transformers gates before the norm, whatever it says
        "rescale_prenorm_residual",
        "residual_in_fp32",
        "time_step_floor",
        "time_step_init_scheme",
        "time_step_max",
        "time_step_min",
        "time_step_rank",
        "time_step_scale",
    ),
)

# Weights.

MAMBA2_LAYER: Modules = {
    "norm": "attention_norm",
    "mixer.in_proj": Fused(("mixer.gate", "mixer.value", "mixer.key", "mixer.query", "mixer.step")),
    "mixer.conv1d": Fused(("mixer.value_convolution", "mixer.key_convolution", "mixer.query_convolution")),
    "mixer.dt_bias": Stored(("mixer.step_bias",), is_vector=True),
    "mixer.A_log": Stored(("mixer.log_rate",), is_vector=True),
    "mixer.D": Stored(("mixer.skip",), is_vector=True),
    "mixer.norm.weight": Stored(("mixer.scale",), is_vector=True),
    "mixer.out_proj": "mixer.out",
}

MAMBA2 = ModelType(
    name="mamba2",
    architectures=(Architecture("Mamba2ForCausalLM", objective="causal"),),
    config=MAMBA2_CONFIG,
    weights=WeightTable(
        modules={
            "backbone.embeddings": "tokens",
            "backbone.norm_f": "decoder.stack.final_norm",
            "lm_head": "output.matrix",
        },
        stacks=(StackModules("backbone.layers.{layer}", "decoder.stack.layers", MAMBA2_LAYER),),
    ),
    tokenizer_class="GPTNeoXTokenizer",
    base_model_prefix="backbone.",
    copies={OUTPUT_MATRIX: "backbone.embeddings.weight"},
    renamed_tensors={r"backbone\.embedding\.": "backbone.embeddings."},
)
"""Dao & Gu 2024, §7: layers of one state space each, without feed-forwards."""
