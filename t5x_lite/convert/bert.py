"""BERT, RoBERTa, ALBERT and ELECTRA (generator or discriminator) in Hugging Face's format."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from t5x_lite.convert.family import ACTIVATIONS, Family, foreign_activation
from t5x_lite.convert.tensors import Layers, Modules
from t5x_lite.models.config import LayerNorm, Learned, ModelConfig

ATTENTION: Modules = {
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.out",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "feedforward.up",
    "output.dense": "feedforward.down",
    "output.LayerNorm": "feedforward_norm",
}


class Bert(Family):
    """Devlin et al. 2019, with masked language modelling alone or with next-sentence prediction."""

    model_type, prefix = "bert", "bert."
    objective = "masked"
    ignored: ClassVar[tuple[str, ...]] = (
        r"cls\.predictions\.decoder\.(weight|bias)",
        r"bert\.embeddings\.position_ids",
    )
    renamed: ClassVar[Mapping[str, str]] = {r"\.gamma$": ".weight", r"\.beta$": ".bias"}
    offset = 0
    sentences = "next"

    def outputs(self, names: Collection[str]) -> tuple[str, ...]:
        """What the tensors of a file predict."""
        return ("tokens", "sentence") if "cls.seq_relationship.weight" in names else ("tokens",)

    def model(self, hf: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        outputs = self.outputs(names)
        embedding = hf.get("embedding_size", hf["hidden_size"])
        return {
            "family": "encoder",
            "outputs": outputs,
            "output_transform": "tokens" in outputs,
            "output_bias": "tokens" in outputs,
            "layers": hf["num_hidden_layers"],
            "embed": hf["hidden_size"],
            "embedding": None if embedding == hf["hidden_size"] else embedding,
            "heads": hf["num_attention_heads"],
            "mlp": hf["intermediate_size"],
            "vocab": hf["vocab_size"],
            "token_types": hf["type_vocab_size"],
            "embedding_norm": True,
            "positions": {"learned": {"length": hf["max_position_embeddings"] - self.offset, "offset": self.offset}},
            "norm": {"layernorm": {"epsilon": hf.get("layer_norm_eps", 1e-12)}},
            "norm_place": "post",
            "feedforward": {"mlp": {"activation": ACTIVATIONS[hf.get("hidden_act", "gelu")]}},
            "dropout": hf.get("hidden_dropout_prob", 0.1),
            "init": {"normal": {"scale_residual": False}},
        }

    def config(self, model: ModelConfig) -> dict[str, Any]:
        assert isinstance(model.positions, Learned)
        assert isinstance(model.norm, LayerNorm)
        return {
            "vocab_size": model.vocab,
            "hidden_size": model.embed,
            "num_hidden_layers": model.layers,
            "num_attention_heads": model.heads,
            "intermediate_size": model.width_of_mlp,
            "hidden_act": foreign_activation(model.dense_feedforward.activation),
            "hidden_dropout_prob": model.dropout,
            "attention_probs_dropout_prob": model.dropout,
            "max_position_embeddings": model.positions.length + model.positions.offset,
            "type_vocab_size": model.token_types,
            "layer_norm_eps": model.norm.epsilon,
        }

    def objective_of(self, model: ModelConfig) -> Any:
        if "tokens" not in model.outputs:
            return None
        return {"masked": {"sentences": self.sentences if "sentence" in model.outputs else "none"}}

    def architecture_of(self, model: ModelConfig) -> str:
        return "BertForPreTraining" if "sentence" in model.outputs else "BertForMaskedLM"

    def modules(self, model: ModelConfig) -> tuple[Modules, list[Layers]]:
        outside = _embeddings("bert") | {
            "bert.pooler.dense": "sentence.pooler",
            "cls.seq_relationship": "sentence.classes",
            "cls.predictions": "output",
            "cls.predictions.transform.dense": "output.transform",
            "cls.predictions.transform.LayerNorm": "output.norm",
        }
        return outside, [Layers("bert.encoder.layer.{}", "encoder.stack.layers", ATTENTION)]


def _embeddings(prefix: str, side: str = "encoder") -> dict[str, str]:
    return {
        f"{prefix}.embeddings.word_embeddings": "tokens",
        f"{prefix}.embeddings.position_embeddings": f"{side}.embedding.positions.table",
        f"{prefix}.embeddings.token_type_embeddings": f"{side}.embedding.types",
        f"{prefix}.embeddings.LayerNorm": f"{side}.embedding.norm",
    }


class Roberta(Bert):
    """Liu et al. 2019: no sentence output, and positions start at 2."""

    model_type, prefix = "roberta", "roberta."
    offset = 2
    ignored = (r"lm_head\.decoder\.(weight|bias)", r"roberta\.embeddings\.position_ids")

    def outputs(self, names: Collection[str]) -> tuple[str, ...]:
        return ("tokens",)

    def config(self, model: ModelConfig) -> dict[str, Any]:
        return super().config(model) | {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}

    def architecture_of(self, model: ModelConfig) -> str:
        return "RobertaForMaskedLM"

    def modules(self, model: ModelConfig) -> tuple[Modules, list[Layers]]:
        outside = _embeddings("roberta") | {
            "lm_head": "output",
            "lm_head.dense": "output.transform",
            "lm_head.layer_norm": "output.norm",
        }
        return outside, [Layers("roberta.encoder.layer.{}", "encoder.stack.layers", ATTENTION)]


class Albert(Bert):
    """Lan et al. 2020: a factorised embedding, one layer's weights for all, sentence order."""

    model_type, prefix = "albert", "albert."
    sentences = "order"
    ignored = (r"predictions\.decoder\.(weight|bias)", r"albert\.embeddings\.position_ids", r"albert\.pooler\..*")

    def outputs(self, names: Collection[str]) -> tuple[str, ...]:
        return ("tokens", "sentence") if "sop_classifier.classifier.weight" in names else ("tokens",)

    def model(self, hf: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        return super().model(hf, names) | {"shared_layers": True}

    def config(self, model: ModelConfig) -> dict[str, Any]:
        groups = {"num_hidden_groups": 1, "inner_group_num": 1}
        return super().config(model) | {"embedding_size": model.width_of_embedding} | groups

    def architecture_of(self, model: ModelConfig) -> str:
        return "AlbertForPreTraining" if "sentence" in model.outputs else "AlbertForMaskedLM"

    def modules(self, model: ModelConfig) -> tuple[Modules, list[Layers]]:
        layer: Modules = {
            "attention.query": "attention.query",
            "attention.key": "attention.key",
            "attention.value": "attention.value",
            "attention.dense": "attention.out",
            "attention.LayerNorm": "attention_norm",
            "ffn": "feedforward.up",
            "ffn_output": "feedforward.down",
            "full_layer_layer_norm": "feedforward_norm",
        }
        outside = _embeddings("albert") | {
            "albert.encoder.embedding_hidden_mapping_in": "encoder.project",
            "albert.pooler": "sentence.pooler",
            "sop_classifier.classifier": "sentence.classes",
            "predictions": "output",
            "predictions.dense": "output.transform",
            "predictions.LayerNorm": "output.norm",
        }
        layers = Layers("albert.encoder.albert_layer_groups.0.albert_layers.{}", "encoder.stack.layers", layer)
        return outside, [layers]


class Electra(Bert):
    """Clark et al. 2020: the generator (a masked language model) or the discriminator."""

    model_type, prefix = "electra", "electra."
    ignored = (r"generator_lm_head\.weight", r"electra\.embeddings\.position_ids")

    def outputs(self, names: Collection[str]) -> tuple[str, ...]:
        return ("detection",) if "discriminator_predictions.dense.weight" in names else ("tokens",)

    def config(self, model: ModelConfig) -> dict[str, Any]:
        return super().config(model) | {"embedding_size": model.width_of_embedding}

    def architecture_of(self, model: ModelConfig) -> str:
        return "ElectraForPreTraining" if "detection" in model.outputs else "ElectraForMaskedLM"

    def modules(self, model: ModelConfig) -> tuple[Modules, list[Layers]]:
        outside = _embeddings("electra") | {
            "electra.embeddings_project": "encoder.project",
            "generator_predictions.dense": "output.transform",
            "generator_predictions.LayerNorm": "output.norm",
            "generator_lm_head": "output",
            "discriminator_predictions.dense": "detection.transform",
            "discriminator_predictions.dense_prediction": "detection.score",
        }
        return outside, [Layers("electra.encoder.layer.{}", "encoder.stack.layers", ATTENTION)]
