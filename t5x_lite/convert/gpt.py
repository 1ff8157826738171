"""GPT-2, GPT-Neo and OPT in Hugging Face's format."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from t5x_lite.convert.family import SIZES, Family, Keys, projections
from t5x_lite.convert.tensors import TORCH, Dialect, Modules
from t5x_lite.errors import UserError
from t5x_lite.models.attention.kinds import Local
from t5x_lite.models.config import ModelConfig

BLOCK: Modules = {
    "ln_1": "attention_norm",
    "ln_2": "feedforward_norm",
    "mlp.c_fc": "feedforward.up",
    "mlp.c_proj": "feedforward.down",
}
"""What layers of GPT-2 and GPT-Neo have beside attention."""


class GPT2(Family):
    """Radford et al. 2019. Its Conv1D keeps matrices as [in, out], and query, key and value side by side."""

    model_type, architecture, prefix, objective = "gpt2", "GPT2LMHeadModel", "transformer.", "causal"
    dialect = Dialect(transposed=False, leaves=TORCH)
    ignored = (r"transformer\.h\.\d+\.attn\.(masked_)?bias", r"lm_head\.weight")
    keys: ClassVar[Keys] = {
        "vocab_size": "vocab",
        "n_layer": "layers",
        "n_embd": "embed",
        "n_head": "heads",
        "n_inner": ("mlp", None),
        "n_positions": "positions.learned.length",
        "layer_norm_epsilon": ("norm.layernorm.epsilon", 1e-5),
        "activation_function": ("feedforward.mlp.activation", "gelu_new"),
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), ("dropout", 0.1)),
    }
    base: ClassVar[Modules] = {
        "wte": "tokens",
        "wpe": "decoder.embedding.positions.table",
        "ln_f": "decoder.stack.final_norm",
    }
    place = "h.{}"
    layer: ClassVar[Modules] = {
        **BLOCK,
        "attn.c_attn": ("attention.query", "attention.key", "attention.value"),
        "attn.c_proj": "attention.out",
    }

    def config(self, model: ModelConfig) -> dict[str, Any]:
        return super().config(model) | {"n_inner": model.mlp}


class GPTNeo(Family):
    """Black et al. 2021: dense and local layers in turn, scores not scaled, no biases on query, key and value."""

    model_type, architecture, prefix, objective = "gpt_neo", "GPTNeoForCausalLM", "transformer.", "causal"
    ignored = (r"transformer\.h\.\d+\.attn\.attention\.(masked_)?bias", r"lm_head\.weight")
    keys: ClassVar[Keys] = {
        "vocab_size": "vocab",
        "num_layers": "layers",
        "hidden_size": "embed",
        "num_heads": "heads",
        "intermediate_size": ("mlp", None),
        "max_position_embeddings": "positions.learned.length",
        "layer_norm_epsilon": ("norm.layernorm.epsilon", 1e-5),
        "activation_function": ("feedforward.mlp.activation", "gelu_new"),
        **dict.fromkeys(("resid_dropout", "embed_dropout", "attention_dropout"), ("dropout", 0.0)),
    }
    fixed: ClassVar[Mapping[str, Any]] = {
        "query_key_value_bias": False,
        "attention_scale": 1.0,
        "init.normal.scale_residual": False,
    }
    base, place = GPT2.base, GPT2.place
    layer: ClassVar[Modules] = {**BLOCK, **projections("attn.attention.{}_proj", ("q", "k", "v", "out"))}

    def model(self, hf: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        window = {"local": {"window": hf.get("window_size", 256)}}
        kinds = [kind for part, times in hf["attention_types"] for kind in part * times]
        period = next(n for n in range(1, len(kinds) + 1) if kinds == kinds[:n] * (len(kinds) // n))
        pattern = [{"attention": window if kind == "local" else "dense"} for kind in kinds[:period]]
        return super().model(hf, names) | {"pattern": pattern}

    def config(self, model: ModelConfig) -> dict[str, Any]:
        windows = [kind.window for layer in model.pattern if isinstance(kind := layer.attention, Local)]
        kinds = ["local" if isinstance(layer.attention, Local) else "global" for layer in model.pattern]
        return super().config(model) | {
            "intermediate_size": model.mlp,
            "attention_types": [[kinds, model.layers // len(kinds)]],
            "attention_layers": kinds * (model.layers // len(kinds)),
            "window_size": windows[0] if windows else 256,
        }


class OPT(Family):
    """Zhang et al. 2022: ReLU, and positions start at 2. The 350M model alone is post-norm and factorised."""

    model_type, architecture, prefix, objective = "opt", "OPTForCausalLM", "model.", "causal"
    ignored = (r"lm_head\.weight",)
    keys: ClassVar[Keys] = {
        **SIZES,
        "word_embed_proj_dim": ("embedding", None),
        "ffn_dim": "mlp",
        "max_position_embeddings": "positions.learned.length",
        "activation_function": ("feedforward.mlp.activation", "relu"),
        **dict.fromkeys(("dropout", "attention_dropout"), ("dropout", 0.1)),
    }
    fixed: ClassVar[Mapping[str, Any]] = {
        "positions.learned.offset": 2,
        "norm.layernorm.epsilon": 1e-5,
        "init.normal.deviation": 0.006,
    }
    constant: ClassVar[Mapping[str, Any]] = {"do_layer_norm_before": True}
    base: ClassVar[Modules] = {
        "decoder.embed_tokens": "tokens",
        "decoder.embed_positions": "decoder.embedding.positions.table",
        "decoder.final_layer_norm": "decoder.stack.final_norm",
    }
    place = "decoder.layers.{}"
    layer: ClassVar[Modules] = {
        "self_attn_layer_norm": "attention_norm",
        **projections("self_attn.{}_proj", ("q", "k", "v", "out")),
        "final_layer_norm": "feedforward_norm",
        "fc1": "feedforward.up",
        "fc2": "feedforward.down",
    }

    def model(self, hf: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        own = super().model(hf, names)
        if own.get("embedding") or not hf["do_layer_norm_before"]:
            raise UserError(
                "opt: word_embed_proj_dim and do_layer_norm_before=false (the 350M model) are not supported"
            )
        return own
