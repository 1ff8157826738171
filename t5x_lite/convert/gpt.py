"""GPT-2, GPT-Neo and OPT in Hugging Face's format."""

from collections.abc import Collection, Mapping
from typing import Any

from t5x_lite.convert.family import ACTIVATIONS, Family, foreign_activation
from t5x_lite.convert.tensors import Dialect, Layers, Modules
from t5x_lite.errors import UserError
from t5x_lite.models.config import LayerNorm, Learned, ModelConfig
from t5x_lite.models.patterns import Local


class GPT2(Family):
    """Radford et al. 2019. Its Conv1D keeps matrices as [in, out], and query, key and value side by side."""

    model_type, architecture, prefix, objective = "gpt2", "GPT2LMHeadModel", "transformer.", "causal"
    dialect = Dialect(transposed=False)
    ignored = (r"transformer\.h\.\d+\.attn\.(masked_)?bias", r"lm_head\.weight")

    def model(self, hf: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        return {
            "layers": hf["n_layer"],
            "embed": hf["n_embd"],
            "heads": hf["n_head"],
            "mlp": hf.get("n_inner"),
            "vocab": hf["vocab_size"],
            "positions": {"learned": {"length": hf["n_positions"]}},
            "norm": {"layernorm": {"epsilon": hf.get("layer_norm_epsilon", 1e-5)}},
            "feedforward": {"mlp": {"activation": ACTIVATIONS[hf.get("activation_function", "gelu_new")]}},
            "dropout": hf.get("resid_pdrop", 0.1),
        }

    def config(self, model: ModelConfig) -> dict[str, Any]:
        assert isinstance(model.positions, Learned)
        assert isinstance(model.norm, LayerNorm)
        return {
            "vocab_size": model.vocab,
            "n_layer": model.layers,
            "n_embd": model.embed,
            "n_head": model.heads,
            "n_inner": model.mlp,
            "n_positions": model.positions.length,
            "layer_norm_epsilon": model.norm.epsilon,
            "activation_function": foreign_activation(model.dense_feedforward.activation),
            "resid_pdrop": model.dropout,
            "embd_pdrop": model.dropout,
            "attn_pdrop": model.dropout,
        }

    def modules(self, model: ModelConfig) -> tuple[Modules, list[Layers]]:
        layer: Modules = {
            "ln_1": "attention_norm",
            "attn.c_attn": ("attention.query", "attention.key", "attention.value"),
            "attn.c_proj": "attention.out",
            "ln_2": "feedforward_norm",
            "mlp.c_fc": "feedforward.up",
            "mlp.c_proj": "feedforward.down",
        }
        return _OUTSIDE, [Layers("transformer.h.{}", "decoder.stack.layers", layer)]


_OUTSIDE: Modules = {
    "transformer.wte": "tokens",
    "transformer.wpe": "decoder.embedding.positions.table",
    "transformer.ln_f": "decoder.stack.final_norm",
}


class GPTNeo(Family):
    """Black et al. 2021: dense and local layers in turn, scores not scaled, no biases on query, key and value."""

    model_type, architecture, prefix, objective = "gpt_neo", "GPTNeoForCausalLM", "transformer.", "causal"
    ignored = (r"transformer\.h\.\d+\.attn\.attention\.(masked_)?bias", r"lm_head\.weight")

    def model(self, hf: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        window = {"local": {"window": hf.get("window_size", 256)}}
        kinds = [kind for part, times in hf["attention_types"] for kind in part * times]
        period = next(n for n in range(1, len(kinds) + 1) if kinds == kinds[:n] * (len(kinds) // n))
        return {
            "layers": hf["num_layers"],
            "embed": hf["hidden_size"],
            "heads": hf["num_heads"],
            "mlp": hf.get("intermediate_size"),
            "vocab": hf["vocab_size"],
            "pattern": [{"attention": window if kind == "local" else "dense"} for kind in kinds[:period]],
            "positions": {"learned": {"length": hf["max_position_embeddings"]}},
            "norm": {"layernorm": {"epsilon": hf.get("layer_norm_epsilon", 1e-5)}},
            "feedforward": {"mlp": {"activation": ACTIVATIONS[hf.get("activation_function", "gelu_new")]}},
            "query_key_value_bias": False,
            "attention_scale": 1.0,
            "dropout": hf.get("resid_dropout", 0.0),
            "init": {"normal": {"scale_residual": False}},
        }

    def config(self, model: ModelConfig) -> dict[str, Any]:
        assert isinstance(model.positions, Learned)
        assert isinstance(model.norm, LayerNorm)
        windows = [kind.window for layer in model.pattern if isinstance(kind := layer.attention, Local)]
        kinds = ["local" if isinstance(layer.attention, Local) else "global" for layer in model.pattern]
        return {
            "vocab_size": model.vocab,
            "num_layers": model.layers,
            "hidden_size": model.embed,
            "num_heads": model.heads,
            "intermediate_size": model.mlp,
            "attention_types": [[kinds, model.layers // len(kinds)]],
            "attention_layers": kinds * (model.layers // len(kinds)),
            "window_size": windows[0] if windows else 256,
            "max_position_embeddings": model.positions.length,
            "layer_norm_epsilon": model.norm.epsilon,
            "activation_function": foreign_activation(model.dense_feedforward.activation),
            "resid_dropout": model.dropout,
            "embed_dropout": model.dropout,
            "attention_dropout": model.dropout,
        }

    def modules(self, model: ModelConfig) -> tuple[Modules, list[Layers]]:
        layer: Modules = {
            "ln_1": "attention_norm",
            "attn.attention.q_proj": "attention.query",
            "attn.attention.k_proj": "attention.key",
            "attn.attention.v_proj": "attention.value",
            "attn.attention.out_proj": "attention.out",
            "ln_2": "feedforward_norm",
            "mlp.c_fc": "feedforward.up",
            "mlp.c_proj": "feedforward.down",
        }
        return _OUTSIDE, [Layers("transformer.h.{}", "decoder.stack.layers", layer)]


class OPT(Family):
    """Zhang et al. 2022: ReLU, and positions start at 2. The 350M model alone is post-norm and factorised."""

    model_type, architecture, prefix, objective = "opt", "OPTForCausalLM", "model.", "causal"
    ignored = (r"lm_head\.weight",)

    def model(self, hf: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        if hf.get("word_embed_proj_dim", hf["hidden_size"]) != hf["hidden_size"] or not hf["do_layer_norm_before"]:
            raise UserError(
                "opt: word_embed_proj_dim and do_layer_norm_before=false (the 350M model) are not supported"
            )
        return {
            "layers": hf["num_hidden_layers"],
            "embed": hf["hidden_size"],
            "heads": hf["num_attention_heads"],
            "mlp": hf["ffn_dim"],
            "vocab": hf["vocab_size"],
            "positions": {"learned": {"length": hf["max_position_embeddings"], "offset": 2}},
            "norm": {"layernorm": {"epsilon": 1e-5}},
            "feedforward": {"mlp": {"activation": ACTIVATIONS[hf.get("activation_function", "relu")]}},
            "dropout": hf.get("dropout", 0.1),
            "init": {"normal": {"deviation": 0.006}},
        }

    def config(self, model: ModelConfig) -> dict[str, Any]:
        assert isinstance(model.positions, Learned)
        return {
            "vocab_size": model.vocab,
            "num_hidden_layers": model.layers,
            "hidden_size": model.embed,
            "word_embed_proj_dim": model.embed,
            "num_attention_heads": model.heads,
            "ffn_dim": model.width_of_mlp,
            "max_position_embeddings": model.positions.length,
            "activation_function": foreign_activation(model.dense_feedforward.activation),
            "do_layer_norm_before": True,
            "dropout": model.dropout,
            "attention_dropout": model.dropout,
        }

    def modules(self, model: ModelConfig) -> tuple[Modules, list[Layers]]:
        layer: Modules = {
            "self_attn_layer_norm": "attention_norm",
            "self_attn.q_proj": "attention.query",
            "self_attn.k_proj": "attention.key",
            "self_attn.v_proj": "attention.value",
            "self_attn.out_proj": "attention.out",
            "final_layer_norm": "feedforward_norm",
            "fc1": "feedforward.up",
            "fc2": "feedforward.down",
        }
        outside: Modules = {
            "model.decoder.embed_tokens": "tokens",
            "model.decoder.embed_positions": "decoder.embedding.positions.table",
            "model.decoder.final_layer_norm": "decoder.stack.final_norm",
        }
        return outside, [Layers("model.decoder.layers.{}", "decoder.stack.layers", layer)]
