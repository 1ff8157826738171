"""BERT, RoBERTa, ALBERT and ELECTRA (generator or discriminator) in Hugging Face's format."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from t5x_lite.convert.family import SIZES, Family, Keys, Marked, projections
from t5x_lite.convert.tensors import Modules
from t5x_lite.models.config import ModelConfig


def _token_output(module: str, transform: str, norm: str) -> dict[str, str]:
    """The scores of tokens, from states that a dense layer and a norm have passed."""
    return {module: "output", transform: "output.transform", norm: "output.norm"}


class Bert(Family):
    """Devlin et al. 2019, with masked language modelling alone or with next-sentence prediction."""

    model_type, architecture, prefix, objective = "bert", "BertForMaskedLM", "bert.", "masked"
    ignored: ClassVar[tuple[str, ...]] = (
        r"cls\.predictions\.decoder\.(weight|bias)",
        r"bert\.embeddings\.position_ids",
    )
    renamed: ClassVar[Mapping[str, str]] = {r"\.gamma$": ".weight", r"\.beta$": ".bias"}
    marked: ClassVar[Marked | None] = ("cls.seq_relationship.weight", ("tokens", "sentence"), "BertForPreTraining")
    offset = 0
    sentences = "next"
    keys: ClassVar[Keys] = {
        **SIZES,
        "intermediate_size": "mlp",
        "hidden_act": ("feedforward.mlp.activation", "gelu"),
        **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), ("dropout", 0.1)),
        "max_position_embeddings": "positions.learned.length",
        "type_vocab_size": "token_types",
        "layer_norm_eps": ("norm.layernorm.epsilon", 1e-12),
    }
    fixed: ClassVar[Mapping[str, Any]] = {
        "family": "encoder",
        "embedding_norm": True,
        "norm_place": "post",
        "init.normal.scale_residual": False,
    }
    base: ClassVar[Modules] = {
        "embeddings.word_embeddings": "tokens",
        "embeddings.position_embeddings": "encoder.embedding.positions.table",
        "embeddings.token_type_embeddings": "encoder.embedding.types",
        "embeddings.LayerNorm": "encoder.embedding.norm",
        "pooler.dense": "sentence.pooler",
    }
    heads: ClassVar[Modules] = {
        "cls.seq_relationship": "sentence.classes",
        **_token_output("cls.predictions", "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"),
    }
    place = "encoder.layer.{}"
    layer: ClassVar[Modules] = {
        **projections("attention.{}", ("self.query", "self.key", "self.value", "output.dense")),
        "attention.output.LayerNorm": "attention_norm",
        "intermediate.dense": "feedforward.up",
        "output.dense": "feedforward.down",
        "output.LayerNorm": "feedforward_norm",
    }

    def model(self, hf: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        own = super().model(hf, names)
        own["positions"]["learned"]["length"] -= self.offset
        own["positions"]["learned"]["offset"] = self.offset
        outputs = self.marked[1] if self.marked and self.marked[0] in names else ("tokens",)
        told = "tokens" in outputs
        return own | {"outputs": outputs, "output_transform": told, "output_bias": told}

    def config(self, model: ModelConfig) -> dict[str, Any]:
        own = super().config(model)
        return own | {"max_position_embeddings": own["max_position_embeddings"] + self.offset}

    def objective_of(self, model: ModelConfig) -> Any:
        if "tokens" not in model.outputs:
            return None
        return {"masked": {"sentences": self.sentences if "sentence" in model.outputs else "none"}}


class Roberta(Bert):
    """Liu et al. 2019: no sentence output, and positions start at 2."""

    model_type, architecture, prefix = "roberta", "RobertaForMaskedLM", "roberta."
    ignored = (r"lm_head\.decoder\.(weight|bias)", r"roberta\.embeddings\.position_ids")
    marked = None
    offset = 2
    constant: ClassVar[Mapping[str, Any]] = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    heads: ClassVar[Modules] = _token_output("lm_head", "lm_head.dense", "lm_head.layer_norm")


class Albert(Bert):
    """Lan et al. 2020: a factorised embedding, one layer's weights for all, sentence order."""

    model_type, architecture, prefix = "albert", "AlbertForMaskedLM", "albert."
    ignored = (r"predictions\.decoder\.(weight|bias)", r"albert\.embeddings\.position_ids", r"albert\.pooler\..*")
    marked = ("sop_classifier.classifier.weight", ("tokens", "sentence"), "AlbertForPreTraining")
    sentences = "order"
    keys: ClassVar[Keys] = {**Bert.keys, "embedding_size": ("embedding", None)}
    fixed: ClassVar[Mapping[str, Any]] = {**Bert.fixed, "shared_layers": True}
    constant: ClassVar[Mapping[str, Any]] = {"num_hidden_groups": 1, "inner_group_num": 1}
    base: ClassVar[Modules] = {
        **{theirs: ours for theirs, ours in Bert.base.items() if theirs != "pooler.dense"},
        "encoder.embedding_hidden_mapping_in": "encoder.project",
        "pooler": "sentence.pooler",
    }
    heads: ClassVar[Modules] = {
        "sop_classifier.classifier": "sentence.classes",
        **_token_output("predictions", "predictions.dense", "predictions.LayerNorm"),
    }
    place = "encoder.albert_layer_groups.0.albert_layers.{}"
    layer: ClassVar[Modules] = {
        **projections("attention.{}", ("query", "key", "value", "dense")),
        "attention.LayerNorm": "attention_norm",
        "ffn": "feedforward.up",
        "ffn_output": "feedforward.down",
        "full_layer_layer_norm": "feedforward_norm",
    }


class Electra(Bert):
    """Clark et al. 2020: the generator (a masked language model) or the discriminator."""

    model_type, architecture, prefix = "electra", "ElectraForMaskedLM", "electra."
    ignored = (r"generator_lm_head\.weight", r"electra\.embeddings\.position_ids")
    marked = ("discriminator_predictions.dense.weight", ("detection",), "ElectraForPreTraining")
    keys = Albert.keys
    base: ClassVar[Modules] = {**Bert.base, "embeddings_project": "encoder.project"}
    heads: ClassVar[Modules] = {
        **_token_output("generator_lm_head", "generator_predictions.dense", "generator_predictions.LayerNorm"),
        "discriminator_predictions.dense": "detection.transform",
        "discriminator_predictions.dense_prediction": "detection.score",
    }
