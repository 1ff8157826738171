"""BERT, RoBERTa, ALBERT and ELECTRA (generator or discriminator) in Hugging Face's format."""

from t5x_lite.convert.config_table import (
    ACTIVATION,
    SIZE_FIELDS,
    ConfigTable,
    Field,
    ForeignConfig,
    ForeignModel,
    Rule,
    Settings,
    Transform,
    check_count,
)
from t5x_lite.convert.model_type import NO_TOKEN_OUTPUT, Architecture, ModelType
from t5x_lite.convert.weight_map import Modules, StackModules, WeightTable
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig

# Configs.


def _count_positions(unused_rows: int) -> Transform:
    """Convert the rows of the position table to the number of positions, without the first `unused_rows`."""

    def subtract_unused_rows(rows: int) -> int:
        return rows - unused_rows

    def add_unused_rows(length: int) -> int:
        return length + unused_rows

    return Transform(to_ours=subtract_unused_rows, to_foreign=add_unused_rows)


def _encoder_fields(unused_rows: int, activation: str = "gelu") -> tuple[Field, ...]:
    return (
        *SIZE_FIELDS,
        Field("intermediate_size", "mlp"),
        Field("hidden_act", "feedforward.mlp.activation", default=activation, transform=ACTIVATION),
        Field("hidden_dropout_prob", "dropout", default=0.1),
        Field("attention_probs_dropout_prob", "dropout", is_read=False),
        Field("max_position_embeddings", "positions.learned.length", transform=_count_positions(unused_rows)),
        Field("type_vocab_size", "token_types"),
        Field("layer_norm_eps", "norm.layernorm.epsilon", default=1e-12),
    )


BERT_FIELDS = _encoder_fields(unused_rows=0)
BERT_FIXED = {
    "family": "encoder",
    "embedding_norm": True,
    "norm_place": "post",
    "init.normal.scale_residual": False,
}
ROBERTA_UNUSED_ROWS = 2
"""RoBERTa's positions start at 2; its `max_position_embeddings` counts the two rows before them."""
ROBERTA_FIELDS = _encoder_fields(unused_rows=ROBERTA_UNUSED_ROWS)
ROBERTA_FIXED = {**BERT_FIXED, "positions.learned.offset": ROBERTA_UNUSED_ROWS}
EMBEDDING_SIZE = Field("embedding_size", "embedding", default=None)
ALBERT_FIELDS = (*_encoder_fields(unused_rows=0, activation="gelu_new"), EMBEDDING_SIZE)
FACTORISED_FIELDS = (*BERT_FIELDS, EMBEDDING_SIZE)
"""BERT's fields, and the width of the token embedding."""

TOKEN_OUTPUT = {"output_transform": True, "output_bias": True}


def headless(name: str) -> Architecture:
    """Return the class of the base model, which encodes texts and predicts nothing."""
    return Architecture(name, objective=None, outputs=(), settings=NO_TOKEN_OUTPUT)


def masked_lm(name: str) -> Architecture:
    """Return the class that predicts masked tokens."""
    objective = {"masked": {"sentences": "none"}}
    return Architecture(name, objective, outputs=("tokens",), settings=TOKEN_OUTPUT)


def _masked_lm_with_sentences(name: str, sentences: str, marker_tensor: str) -> Architecture:
    """Return a class that also classifies pairs of sentences."""
    objective = {"masked": {"sentences": sentences}}
    return Architecture(name, objective, ("tokens", "sentence"), TOKEN_OUTPUT, marker_tensor)


def _classifier(name: str, marker_tensor: str, modules: Modules) -> Architecture:
    """Return a class that scores the labels of a text, through a dense tanh layer on the first token's state."""
    return Architecture(
        name,
        objective=None,
        outputs=(),
        settings=NO_TOKEN_OUTPUT,
        marker_tensor=marker_tensor,
        modules=modules,
        is_classifier=True,
    )


def _require_gelu(source: ForeignModel, settings: Settings) -> None:
    """Refuse another activation than GELU, which the token output of these models has whatever the config says."""
    is_discriminator = DISCRIMINATOR_TENSOR in source.tensor_names
    if settings["feedforward"]["mlp"]["activation"] != "gelu" and not is_discriminator:
        raise UserError(f"hidden_act={source.config['hidden_act']} is not supported (only gelu)")


def _read_groups(source: ForeignModel, settings: Settings) -> None:
    """Read how layers share weights.

    A group of `inner_group_num` layers is one of our layer pattern; Transformers counts it as one hidden layer. The
    hidden layers are cut into `num_hidden_groups` equal parts, each of which repeats a group of its own.
    """
    hidden_layers = settings["layers"]
    groups = check_count("num_hidden_groups", source.config.get("num_hidden_groups", 1))
    inner_layers = check_count("inner_group_num", source.config.get("inner_group_num", 1))
    if hidden_layers % groups:
        raise UserError(
            f"num_hidden_layers={hidden_layers} with num_hidden_groups={groups} and inner_group_num={inner_layers} is "
            "not supported (only groups that repeat equally often)"
        )
    settings["shared_groups"] = groups
    settings["layers"] = check_count("num_hidden_layers * inner_group_num", hidden_layers * inner_layers)
    settings["pattern"] = [{} for _ in range(inner_layers)]


def _write_groups(model: ModelConfig, config: ForeignConfig) -> None:
    inner_layers = len(model.pattern)
    config["inner_group_num"] = inner_layers
    config["num_hidden_groups"] = model.shared_groups
    config["num_hidden_layers"] = model.layers // inner_layers


GROUPS = Rule(("num_hidden_groups", "inner_group_num"), read=_read_groups, write=_write_groups)

DISCRIMINATOR_TENSOR = "discriminator_predictions.dense.weight"
GELU_OUTPUT = Rule(("hidden_act",), read=_require_gelu)

# Weights.


def _embedding_modules(base_model: str) -> Modules:
    return {
        f"{base_model}.embeddings.word_embeddings": "tokens",
        f"{base_model}.embeddings.position_embeddings": "encoder.embedding.positions.table",
        f"{base_model}.embeddings.token_type_embeddings": "encoder.embedding.types",
        f"{base_model}.embeddings.LayerNorm": "encoder.embedding.norm",
    }


BERT_LAYER: Modules = {
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.out",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "feedforward.up",
    "output.dense": "feedforward.down",
    "output.LayerNorm": "feedforward_norm",
}
BERT_WEIGHTS = WeightTable(
    modules={
        **_embedding_modules("bert"),
        "bert.pooler.dense": "sentence.pooler",
        "cls.seq_relationship": "sentence.classes",
        "cls.predictions": "output",
        "cls.predictions.transform.dense": "output.transform",
        "cls.predictions.transform.LayerNorm": "output.norm",
    },
    stacks=(StackModules("bert.encoder.layer.{layer}", "encoder.stack.layers", BERT_LAYER),),
)
ROBERTA_WEIGHTS = WeightTable(
    modules={
        **_embedding_modules("roberta"),
        "lm_head": "output",
        "lm_head.dense": "output.transform",
        "lm_head.layer_norm": "output.norm",
    },
    stacks=(StackModules("roberta.encoder.layer.{layer}", "encoder.stack.layers", BERT_LAYER),),
)
ALBERT_LAYER: Modules = {
    "attention.query": "attention.query",
    "attention.key": "attention.key",
    "attention.value": "attention.value",
    "attention.dense": "attention.out",
    "attention.LayerNorm": "attention_norm",
    "ffn": "feedforward.up",
    "ffn_output": "feedforward.down",
    "full_layer_layer_norm": "feedforward_norm",
}
ALBERT_WEIGHTS = WeightTable(
    modules={
        **_embedding_modules("albert"),
        "albert.encoder.embedding_hidden_mapping_in": "encoder.project",
        "albert.pooler": "sentence.pooler",
        "sop_classifier.classifier": "sentence.classes",
        "predictions": "output",
        "predictions.dense": "output.transform",
        "predictions.LayerNorm": "output.norm",
    },
    stacks=(
        StackModules(
            "albert.encoder.albert_layer_groups.{repeat}.albert_layers.{place}", "encoder.stack.layers", ALBERT_LAYER
        ),
    ),
)
ELECTRA_WEIGHTS = WeightTable(
    modules={
        **_embedding_modules("electra"),
        "electra.embeddings_project": "encoder.project",
        "generator_lm_head": "output",
        "generator_predictions.dense": "output.transform",
        "generator_predictions.LayerNorm": "output.norm",
        "discriminator_predictions.dense": "detection.transform",
        "discriminator_predictions.dense_prediction": "detection.score",
    },
    stacks=(StackModules("electra.encoder.layer.{layer}", "encoder.stack.layers", BERT_LAYER),),
)
ENCODER_TIED = ("tie_word_embeddings",)
"""The stored tensors tell whether the output matrix is tied; the model has no untied one, which is refused."""
LAYER_NORMS_OF_OLDER_FILES = {r"\.gamma$": ".weight", r"\.beta$": ".bias"}

# Model types.

BERT = ModelType(
    name="bert",
    architectures=(
        masked_lm("BertForMaskedLM"),
        _masked_lm_with_sentences("BertForPreTraining", "next", marker_tensor="cls.seq_relationship.weight"),
        _classifier(
            "BertForSequenceClassification",
            marker_tensor="classifier.weight",
            modules={"bert.pooler.dense": "head.pooler", "classifier": "head.scores"},
        ),
    ),
    headless=headless("BertModel"),
    config=ConfigTable(BERT_FIELDS, BERT_FIXED, without_effect=ENCODER_TIED),
    weights=BERT_WEIGHTS,
    tokenizer_class="BertTokenizer",
    base_model_prefix="bert.",
    ignored_tensors=(r"bert\.embeddings\.position_ids",),
    unused_tensors=(r"bert\.pooler\..*",),
    copies={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    renamed_tensors=LAYER_NORMS_OF_OLDER_FILES,
)
"""Devlin et al. 2019, with masked language modelling alone or with next-sentence prediction."""

ROBERTA = ModelType(
    name="roberta",
    architectures=(
        masked_lm("RobertaForMaskedLM"),
        _classifier(
            "RobertaForSequenceClassification",
            marker_tensor="classifier.out_proj.weight",
            modules={"classifier.dense": "head.pooler", "classifier.out_proj": "head.scores"},
        ),
    ),
    headless=headless("RobertaModel"),
    config=ConfigTable(
        ROBERTA_FIELDS,
        ROBERTA_FIXED,
        constants={"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
        rules=(GELU_OUTPUT,),
        required_values={"pad_token_id": (1, None)},
        without_effect=ENCODER_TIED,
    ),
    weights=ROBERTA_WEIGHTS,
    tokenizer_class="RobertaTokenizer",
    base_model_prefix="roberta.",
    ignored_tensors=(r"roberta\.embeddings\.position_ids", r"roberta\.pooler\..*"),
    copies={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    renamed_tensors=LAYER_NORMS_OF_OLDER_FILES,
)
"""Liu et al. 2019: BERT without a sentence output, and with positions that start at 2."""

ALBERT = ModelType(
    name="albert",
    architectures=(
        masked_lm("AlbertForMaskedLM"),
        _masked_lm_with_sentences("AlbertForPreTraining", "order", marker_tensor="sop_classifier.classifier.weight"),
        _classifier(
            "AlbertForSequenceClassification",
            marker_tensor="classifier.weight",
            modules={"albert.pooler": "head.pooler", "classifier": "head.scores"},
        ),
    ),
    headless=headless("AlbertModel"),
    config=ConfigTable(
        ALBERT_FIELDS,
        fixed={**BERT_FIXED, "shared_layers": True},
        rules=(GROUPS,),
        without_effect=ENCODER_TIED,
    ),
    weights=ALBERT_WEIGHTS,
    tokenizer_class="AlbertTokenizer",
    base_model_prefix="albert.",
    ignored_tensors=(
        r"albert\.embeddings\.position_ids",
        r"albert\.pooler\..*",  # AlbertForMaskedLM stores a pooler that it does not use
    ),
    copies={
        "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
        "predictions.decoder.bias": "predictions.bias",
    },
    renamed_tensors=LAYER_NORMS_OF_OLDER_FILES,
)
"""Lan et al. 2020: a factorised embedding, one layer's weights for all layers, and the order of sentences."""

ELECTRA = ModelType(
    name="electra",
    architectures=(
        masked_lm("ElectraForMaskedLM"),
        Architecture(
            "ElectraForPreTraining",
            objective=None,
            outputs=("detection",),
            settings=NO_TOKEN_OUTPUT,
            marker_tensor=DISCRIMINATOR_TENSOR,
        ),
    ),
    headless=headless("ElectraModel"),
    config=ConfigTable(FACTORISED_FIELDS, BERT_FIXED, rules=(GELU_OUTPUT,), without_effect=ENCODER_TIED),
    weights=ELECTRA_WEIGHTS,
    tokenizer_class="BertTokenizer",
    base_model_prefix="electra.",
    ignored_tensors=(r"electra\.embeddings\.position_ids",),
    copies={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
    renamed_tensors=LAYER_NORMS_OF_OLDER_FILES,
)
"""Clark et al. 2020: the generator (a masked language model) or the discriminator."""
