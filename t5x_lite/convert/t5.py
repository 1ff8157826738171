"""T5 v1.0 and v1.1, mT5, umT5, ByT5 and Switch Transformers in Hugging Face's format."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from t5x_lite.convert.family import ACTIVATIONS, Family, Keys, foreign_activation, projections
from t5x_lite.convert.tensors import Layers, Modules
from t5x_lite.errors import UserError
from t5x_lite.models.components import GLU
from t5x_lite.models.config import ModelConfig

SELF: Modules = {
    "layer.0.layer_norm": "attention_norm",
    **projections("layer.0.SelfAttention.{}"),
    "layer.0.SelfAttention.relative_attention_bias": "attention.positions",
}
CROSS: Modules = {
    "layer.1.layer_norm": "cross_norm",
    **projections("layer.1.EncDecAttention.{}", ours="cross_attention"),
}


class T5(Family):
    """Raffel et al. 2020; v1.1 is gated and untied; umT5 has positions of its own in every layer.

    With `scaled`, a tied output divides states by sqrt(d_model); Transformers' mT5 does not.
    """

    def __init__(self, model_type: str, architecture: str, *, shared: bool = True, scaled: bool = True) -> None:
        self.model_type, self.architecture = model_type, architecture
        self.shared_positions, self.scaled = shared, scaled

    objective = "span_corruption"
    # Copies of shared.weight that older files hold.
    ignored = (r"(encoder|decoder)\.embed_tokens\.weight",)
    keys: ClassVar[Keys] = {
        "vocab_size": "vocab",
        "d_model": "embed",
        "d_kv": "head_dim",
        "d_ff": "mlp",
        "num_layers": "layers",
        "num_decoder_layers": ("decoder_layers", None),
        "num_heads": "heads",
        "relative_attention_num_buckets": ("positions.relative.buckets", 32),
        "relative_attention_max_distance": ("positions.relative.distance", 128),
        "layer_norm_epsilon": ("norm.rmsnorm.epsilon", 1e-6),
        "dropout_rate": ("dropout", 0.0),
    }
    fixed: ClassVar[Mapping[str, Any]] = {
        "family": "encoder_decoder",
        "bias": False,
        "attention_scale": 1.0,
        "init.fan_in.embedding_deviation": 1.0,
    }
    constant: ClassVar[Mapping[str, Any]] = {
        "is_encoder_decoder": True,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    base: ClassVar[Modules] = {
        "shared": "tokens",
        "encoder.final_layer_norm": "encoder.stack.final_norm",
        "decoder.final_layer_norm": "decoder.stack.final_norm",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias": "encoder.stack.positions",
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias": "decoder.stack.positions",
    }
    heads: ClassVar[Modules] = {"lm_head": "output.matrix"}

    def model(self, hf: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        own, tied = super().model(hf, names), "lm_head.weight" not in names
        own["positions"]["relative"]["shared"] = self.shared_positions
        act = hf.get("feed_forward_proj", "relu")
        kind = "glu" if act.startswith("gated-") else "mlp"
        # "gated-gelu" stands for the tanh form; the file, not the config, says whether the output is tied.
        activation = "gelu_tanh" if act == "gated-gelu" else ACTIVATIONS[act.removeprefix("gated-")]
        scaled = hf.get("scale_decoder_outputs", hf.get("tie_word_embeddings", True))
        return own | {
            "feedforward": {kind: {"activation": activation, "dropout": own["dropout"]}},
            "tied": tied,
            "scale_output": tied and self.scaled and scaled,
        }

    def config(self, model: ModelConfig) -> dict[str, Any]:
        activation, gated = foreign_activation(model), isinstance(model.feedforward, GLU)
        return super().config(model) | {
            "feed_forward_proj": f"gated-{activation}".replace("gelu_new", "gelu") if gated else activation,
            "tie_word_embeddings": model.scale_output,
            "scale_decoder_outputs": model.scale_output,
        }

    def modules(self, model: ModelConfig) -> tuple[Modules, list[Layers]]:
        encoder = Layers("encoder.block.{}", "encoder.stack.layers", {**SELF, **self.feedforward(model, 1)})
        decoder = Layers("decoder.block.{}", "decoder.stack.layers", {**SELF, **CROSS, **self.feedforward(model, 2)})
        return {**self.base, **self.heads}, [encoder, decoder]

    def feedforward(self, model: ModelConfig, layer: int) -> Modules:
        """The modules of a feed-forward; `layer` is the number of their sublayer."""
        inner = f"layer.{layer}.DenseReluDense"
        gated: Modules = {f"{inner}.wi_0": "feedforward.gate", f"{inner}.wi_1": "feedforward.up"}
        first: Modules = gated if isinstance(model.feedforward, GLU) else {f"{inner}.wi": "feedforward.up"}
        return {f"layer.{layer}.layer_norm": "feedforward_norm", **first, f"{inner}.wo": "feedforward.down"}


class SwitchTransformers(T5):
    """Fedus et al. 2022: T5 v1.0 with experts in every n-th layer, room for a fixed number of tokens of a row."""

    def __init__(self) -> None:
        super().__init__("switch_transformers", "SwitchTransformersForConditionalGeneration")

    keys: ClassVar[Keys] = {
        **T5.keys,
        "num_experts": "moe.experts",
        "expert_capacity": "moe.dispatch.capacity.tokens",
        "router_jitter_noise": ("moe.router.switch.jitter", 0.01),
        "router_aux_loss_coef": ("moe.router.switch.balance", 0.001),
        "router_z_loss_coef": ("moe.router.switch.z_loss", 0.001),
    }

    def model(self, hf: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        steps = {hf.get("encoder_sparse_step", 1), hf.get("decoder_sparse_step", 1)}
        if len(steps) > 1 or hf.get("router_bias") or hf.get("dense_act_fn", "relu") != "relu":
            raise UserError(
                "switch_transformers: different sparse steps, router biases and gated experts are not known"
            )
        # The base class reads T5's names of the same things.
        own = super().model({**hf, "feed_forward_proj": "relu"}, names)
        pattern: list[dict[str, Any]] = [{}] * steps.pop()
        pattern[min(1, len(pattern) - 1)] = {"feedforward": {"moe": own.pop("moe")}}  # layers 1, 1 + step, …
        return own | {"pattern": pattern}

    def config(self, model: ModelConfig) -> dict[str, Any]:
        own = super().config(model)
        del own["feed_forward_proj"]
        step = len(model.pattern)
        return own | {
            "num_sparse_encoder_layers": model.layers // step,
            "num_sparse_decoder_layers": model.layers_of_decoder // step,
            "encoder_sparse_step": step,
            "decoder_sparse_step": step,
            "dense_act_fn": "relu",
        }

    def feedforward(self, model: ModelConfig, layer: int) -> Modules:
        """Dense ones and mixtures: a layer has either."""
        inner = f"layer.{layer}.mlp"
        return {
            f"layer.{layer}.layer_norm": "feedforward_norm",
            f"{inner}.wi": "feedforward.up",
            f"{inner}.wo": "feedforward.down",
            f"{inner}.router.classifier": "feedforward.router",
            f"{inner}.experts.expert_{{}}.wi": "feedforward.experts.up",
            f"{inner}.experts.expert_{{}}.wo": "feedforward.experts.down",
        }
