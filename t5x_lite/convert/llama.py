"""Llama 1 to 3, Mistral, Mixtral and OLMo 2 in Hugging Face's format."""

from collections.abc import Collection, Mapping
from typing import Any

from t5x_lite.convert.family import ACTIVATIONS, Family, foreign_activation
from t5x_lite.convert.tensors import Layers, Modules
from t5x_lite.errors import UserError
from t5x_lite.models.config import GLU, Llama3Stretch, ModelConfig, RMSNorm, Rotary
from t5x_lite.models.experts import TopK
from t5x_lite.models.patterns import Local


class Llama(Family):
    """Touvron et al. 2023; Grattafiori et al. 2024."""

    model_type, architecture, prefix, objective = "llama", "LlamaForCausalLM", "model.", "causal"
    ignored = (r".*rotary_emb\.inv_freq",)
    epsilon = 1e-6

    def model(self, hf: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        heads, embed = hf["num_attention_heads"], hf["hidden_size"]
        kv_heads, head_dim = hf.get("num_key_value_heads") or heads, hf.get("head_dim") or embed // heads
        if hf.get("attention_bias") or hf.get("mlp_bias"):
            raise UserError(f"{self.model_type}: attention_bias and mlp_bias are not supported")
        return {
            "layers": hf["num_hidden_layers"],
            "embed": embed,
            "heads": heads,
            "kv_heads": None if kv_heads == heads else kv_heads,
            "head_dim": None if head_dim * heads == embed else head_dim,
            "mlp": hf["intermediate_size"],
            "vocab": hf["vocab_size"],
            "positions": {"rotary": _rotary(hf)},
            "norm": {"rmsnorm": {"epsilon": hf.get("rms_norm_eps", self.epsilon)}},
            "feedforward": {"glu": {"activation": ACTIVATIONS[hf.get("hidden_act", "silu")]}},
            "bias": False,
            "tied": "lm_head.weight" not in names,
            "init": {"normal": {"scale_residual": False}},
        }

    def config(self, model: ModelConfig) -> dict[str, Any]:
        assert isinstance(model.norm, RMSNorm)
        assert isinstance(model.positions, Rotary)
        return {
            "vocab_size": model.vocab,
            "num_hidden_layers": model.layers,
            "hidden_size": model.embed,
            "num_attention_heads": model.heads,
            "num_key_value_heads": model.key_value_heads,
            "head_dim": model.width_of_head,
            "intermediate_size": model.width_of_mlp,
            "hidden_act": foreign_activation(model.dense_feedforward.activation),
            "rms_norm_eps": model.norm.epsilon,
            "rope_parameters": _rope_parameters(model.positions),
            "tie_word_embeddings": model.tied,
        }

    def modules(self, model: ModelConfig) -> tuple[Modules, list[Layers]]:
        outside: Modules = {
            "model.embed_tokens": "tokens",
            "model.norm": "decoder.stack.final_norm",
            "lm_head": "output.matrix",
        }
        return outside, [Layers("model.layers.{}", "decoder.stack.layers", self.layer(model))]

    def layer(self, model: ModelConfig) -> Modules:
        """One layer's modules."""
        return {
            "input_layernorm": "attention_norm",
            "post_attention_layernorm": "feedforward_norm",
            **_PROJECTIONS,
        }


_PROJECTIONS: Modules = {
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.out",
    "mlp.gate_proj": "feedforward.gate",
    "mlp.up_proj": "feedforward.up",
    "mlp.down_proj": "feedforward.down",
}


def _rotary(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Newer configs say `rope_parameters`, older ones `rope_theta` and `rope_scaling`."""
    rope = {"rope_theta": hf.get("rope_theta", 10000.0)} | (hf.get("rope_parameters") or hf.get("rope_scaling") or {})
    found: dict[str, Any] = {"theta": float(rope["rope_theta"])}
    match rope.get("rope_type", rope.get("type", "default")):
        case "default":
            return found
        case "llama3":
            stretch = {
                "factor": float(rope["factor"]),
                "low": float(rope["low_freq_factor"]),
                "high": float(rope["high_freq_factor"]),
                "original_length": rope["original_max_position_embeddings"],
            }
            return found | {"stretch": {"llama3": stretch}}
        case kind:
            raise UserError(f"rope_type {kind!r} is not supported; default and llama3 are")


def _rope_parameters(rotary: Rotary) -> dict[str, Any]:
    theta = {"rope_theta": rotary.theta}
    if not isinstance(rotary.stretch, Llama3Stretch):
        return theta | {"rope_type": "default"}
    return theta | {
        "rope_type": "llama3",
        "factor": rotary.stretch.factor,
        "low_freq_factor": rotary.stretch.low,
        "high_freq_factor": rotary.stretch.high,
        "original_max_position_embeddings": rotary.stretch.original_length,
    }


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
    epsilon = 1e-5

    def model(self, hf: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        return super().model(hf, names) | {"norm_place": "sublayer", "query_key_norm": "width"}

    def layer(self, model: ModelConfig) -> Modules:
        return {
            "post_attention_layernorm": "attention_norm",
            "post_feedforward_layernorm": "feedforward_norm",
            "self_attn.q_norm": "attention.query_norm",
            "self_attn.k_norm": "attention.key_norm",
            **_PROJECTIONS,
        }


class Mixtral(Mistral):
    """Jiang et al. 2024: every feed-forward is a mixture of which each token passes two."""

    model_type, architecture = "mixtral", "MixtralForCausalLM"
    epsilon = 1e-5

    def model(self, hf: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        own = super().model(hf, names)
        balance = hf.get("router_aux_loss_coef", 0.001)
        router = {"top_k": {"k": hf.get("num_experts_per_tok", 2), "balance": balance, "over": "model"}}
        moe = {"experts": hf["num_local_experts"], "router": router, "dispatch": "dropless"}
        return own | {"feedforward": {"moe": moe | {"expert": own["feedforward"]}}}

    def config(self, model: ModelConfig) -> dict[str, Any]:
        (moe,) = model.mixtures
        assert isinstance(moe.router, TopK)
        assert isinstance(moe.expert, GLU)
        return super().config(model) | {
            "head_dim": model.head_dim,
            "num_local_experts": moe.experts,
            "num_experts_per_tok": moe.router.k,
            "router_aux_loss_coef": moe.router.balance,
        }

    def layer(self, model: ModelConfig) -> Modules:
        return {
            **super().layer(model),
            "block_sparse_moe.gate": "feedforward.router",
            "block_sparse_moe.experts.{}.w1": "feedforward.experts.gate",
            "block_sparse_moe.experts.{}.w3": "feedforward.experts.up",
            "block_sparse_moe.experts.{}.w2": "feedforward.experts.down",
        }
