"""Llama 1 to 3, Mistral, Mixtral and OLMo 2 in Hugging Face's format."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from t5x_lite.convert.family import SIZES, Family, Keys, projections
from t5x_lite.convert.tensors import Modules
from t5x_lite.errors import UserError
from t5x_lite.models.attention.kinds import Local
from t5x_lite.models.components import Llama3Stretch, Rotary
from t5x_lite.models.config import ModelConfig


class Llama(Family):
    """Touvron et al. 2023; Grattafiori et al. 2024."""

    model_type, architecture, prefix, objective = "llama", "LlamaForCausalLM", "model.", "causal"
    ignored = (r".*rotary_emb\.inv_freq",)
    keys: ClassVar[Keys] = {
        **SIZES,
        "num_key_value_heads": ("kv_heads", None),
        "head_dim": ("head_dim", None),
        "intermediate_size": "mlp",
        "hidden_act": ("feedforward.glu.activation", "silu"),
        "rms_norm_eps": ("norm.rmsnorm.epsilon", 1e-6),
    }
    fixed: ClassVar[Mapping[str, Any]] = {"bias": False, "init.normal.scale_residual": False}
    base: ClassVar[Modules] = {"embed_tokens": "tokens", "norm": "decoder.stack.final_norm"}
    heads: ClassVar[Modules] = {"lm_head": "output.matrix"}
    place = "layers.{}"
    layer: ClassVar[Modules] = {
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "feedforward_norm",
        **projections("self_attn.{}_proj"),
        "mlp.gate_proj": "feedforward.gate",
        "mlp.up_proj": "feedforward.up",
        "mlp.down_proj": "feedforward.down",
    }

    def model(self, hf: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        if hf.get("attention_bias") or hf.get("mlp_bias"):
            raise UserError(f"{self.model_type}: attention_bias and mlp_bias are not supported")
        own = super().model(hf, names)
        if own["head_dim"] and own["head_dim"] * own["heads"] == own["embed"]:
            del own["head_dim"]
        return own | {"positions": {"rotary": _rotary(hf)}, "tied": "lm_head.weight" not in names}

    def config(self, model: ModelConfig) -> dict[str, Any]:
        assert isinstance(model.positions, Rotary)
        rope = _rope_parameters(model.positions)
        return super().config(model) | {"rope_parameters": rope, "tie_word_embeddings": model.tied}


def _rotary(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Newer configs say `rope_parameters`, older ones `rope_theta` and `rope_scaling`."""
    rope = {"rope_theta": hf.get("rope_theta", 10000.0)} | (hf.get("rope_parameters") or hf.get("rope_scaling") or {})
    found: dict[str, Any] = {"theta": float(rope["rope_theta"])}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in {"default", "llama3"}:
        raise UserError(f"rope_type {kind!r} is not supported; default and llama3 are")
    if kind == "llama3":
        found["stretch"] = {"llama3": {ours: float(rope[theirs]) for theirs, ours in STRETCH.items()}}
    return found


STRETCH = {
    "factor": "factor",
    "low_freq_factor": "low",
    "high_freq_factor": "high",
    "original_max_position_embeddings": "original_length",
}


def _rope_parameters(rotary: Rotary) -> dict[str, Any]:
    theta = {"rope_theta": rotary.theta}
    if not isinstance(rotary.stretch, Llama3Stretch):
        return theta | {"rope_type": "default"}
    stretch = {theirs: getattr(rotary.stretch, ours) for theirs, ours in STRETCH.items()}
    return theta | {"rope_type": "llama3"} | stretch


class Mistral(Llama):
    """Jiang et al. 2023: a sliding window in every layer."""

    model_type, architecture = "mistral", "MistralForCausalLM"

    def model(self, hf: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        window = hf.get("sliding_window")
        pattern = [{"attention": {"local": {"window": window}} if window else "dense"}]
        return super().model(hf, names) | {"pattern": pattern}

    def config(self, model: ModelConfig) -> dict[str, Any]:
        kind = model.pattern[0].attention
        return super().config(model) | {"sliding_window": kind.window if isinstance(kind, Local) else None}


class OLMo2(Llama):
    """OLMo et al. 2025: norms on the sublayers' outputs, queries and keys normed over all heads at once."""

    model_type, architecture = "olmo2", "Olmo2ForCausalLM"
    keys: ClassVar[Keys] = {**Llama.keys, "rms_norm_eps": ("norm.rmsnorm.epsilon", 1e-5)}
    fixed: ClassVar[Mapping[str, Any]] = {**Llama.fixed, "norm_place": "sublayer", "query_key_norm": "width"}
    layer: ClassVar[Modules] = {
        **{theirs: ours for theirs, ours in Llama.layer.items() if theirs != "input_layernorm"},
        "post_attention_layernorm": "attention_norm",
        "post_feedforward_layernorm": "feedforward_norm",
        "self_attn.q_norm": "attention.query_norm",
        "self_attn.k_norm": "attention.key_norm",
    }


class Mixtral(Mistral):
    """Jiang et al. 2024: every feed-forward is a mixture of which each token passes two."""

    model_type, architecture = "mixtral", "MixtralForCausalLM"
    keys: ClassVar[Keys] = {
        **OLMo2.keys,
        "num_local_experts": "moe.experts",
        "num_experts_per_tok": ("moe.router.top_k.k", 2),
        "router_aux_loss_coef": ("moe.router.top_k.balance", 0.001),
    }
    fixed: ClassVar[Mapping[str, Any]] = {**Llama.fixed, "moe.router.top_k.over": "model", "moe.dispatch": "dropless"}
    layer: ClassVar[Modules] = {
        **Llama.layer,
        "block_sparse_moe.gate": "feedforward.router",
        "block_sparse_moe.experts.{}.w1": "feedforward.experts.gate",
        "block_sparse_moe.experts.{}.w3": "feedforward.experts.up",
        "block_sparse_moe.experts.{}.w2": "feedforward.experts.down",
    }

    def model(self, hf: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        own = super().model(hf, names)
        moe = own.pop("moe") | {"expert": own["feedforward"]}
        return own | {"feedforward": {"moe": moe}}

    def config(self, model: ModelConfig) -> dict[str, Any]:
        return super().config(model) | {"head_dim": model.head_dim}
