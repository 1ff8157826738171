"""DeBERTa, and DeBERTa v2 and v3, in Hugging Face's format."""

from t5x_lite.convert.bert import BERT_FIXED, BERT_LAYER, ENCODER_TIED, headless, masked_lm
from t5x_lite.convert.config_table import (
    ACTIVATION,
    SIZE_FIELDS,
    ConfigTable,
    Field,
    ForeignConfig,
    ForeignModel,
    MissingComponent,
    Rule,
    Settings,
    check_count,
    require_field,
)
from t5x_lite.convert.model_type import HEAD_PREFIXES, NO_TOKEN_OUTPUT, Architecture, ModelType
from t5x_lite.convert.weight_map import Fused, Modules, StackModules, Stored, WeightTable
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.positions import Disentangled

# Configs.

FIELDS = (
    *SIZE_FIELDS,
    Field("intermediate_size", "mlp"),
    Field("hidden_act", "feedforward.mlp.activation", default="gelu", transform=ACTIVATION),
    Field("hidden_dropout_prob", "dropout", default=0.1),
    Field("attention_probs_dropout_prob", "dropout", is_read=False),
    Field("type_vocab_size", "token_types", default=0),
    Field("layer_norm_eps", "norm.layernorm.epsilon", default=1e-7),
)
TERMS = ("c2p", "p2c")
NORM_OF_DISTANCES = {"none": False, "layer_norm": True}
"""Values of `norm_rel_ebd`, and ours."""


def _read_terms(value: object) -> list[str]:
    """Return the terms of `pos_att_type`, a list or names with bars between them, in our order."""
    listed = value.lower().split("|") if isinstance(value, str) else value
    names = {str(name).strip() for name in listed} if isinstance(listed, list) else set()
    if not names or not names <= set(TERMS):
        raise UserError(f"pos_att_type={str(value)[:60]} is not supported (only c2p, p2c, or both)")
    return [term for term in TERMS if term in names]


def _read_distances(source: ForeignModel, settings: Settings) -> None:
    """Read the largest distance and the terms; without `max_relative_positions` it is the number of positions."""
    config = source.config
    distance = config.get("max_relative_positions", -1)
    if not isinstance(distance, int) or distance < 1:
        distance = require_field(config, "max_position_embeddings")
    distance = check_count("max_relative_positions", distance)
    settings["positions"] = {"disentangled": {"distance": distance, "terms": _read_terms(config.get("pos_att_type"))}}
    for name, supported in (("relative_attention", True), ("position_biased_input", False)):
        if config.get(name) is not supported:
            raise UserError(f"{name}={config.get(name)} is not supported (only {str(supported).lower()})")


def _write_distances(model: ModelConfig, config: ForeignConfig) -> None:
    if not isinstance(model.positions, Disentangled):
        raise MissingComponent("positions.disentangled.distance")
    config["relative_attention"] = True
    config["position_biased_input"] = False
    config["max_relative_positions"] = -1
    config["max_position_embeddings"] = model.positions.distance
    config["pos_att_type"] = [term for term in TERMS if term in model.positions.terms]


def _read_widths(source: ForeignModel, settings: Settings) -> None:
    """Refuse widths of embeddings and heads that other models have."""
    config = source.config
    width = settings["embed"]
    expected = {"embedding_size": width, "attention_head_size": width // settings["heads"]}
    for name, size in expected.items():
        if config.get(name, size) != size:
            raise UserError(f"{name}={config[name]} is not supported (only {size})")


def _read_v2(source: ForeignModel, settings: Settings) -> None:
    """Read the buckets of distances, their projections and their norm."""
    config = source.config
    size = config.get("conv_kernel_size", 0)
    if size:
        raise UserError(
            f"conv_kernel_size={size} is not supported: DeBERTa-v2 XLarge's convolution after the first layer"
        )
    norm = str(config.get("norm_rel_ebd", "none")).lower().strip()
    if norm not in NORM_OF_DISTANCES:
        raise UserError(f"norm_rel_ebd={norm[:60]} is not supported (only none or layer_norm)")
    disentangled = settings["positions"]["disentangled"]
    disentangled["norm"] = NORM_OF_DISTANCES[norm]
    disentangled["shared_projections"] = config.get("share_att_key", False)
    disentangled["buckets"] = max(int(config.get("position_buckets", -1)), 0)


def _write_v2(model: ModelConfig, config: ForeignConfig) -> None:
    assert isinstance(model.positions, Disentangled)
    config["norm_rel_ebd"] = "layer_norm" if model.positions.norm else "none"
    config["share_att_key"] = model.positions.shared_projections
    config["position_buckets"] = model.positions.buckets or -1


DISTANCES = Rule(
    (
        "max_relative_positions",
        "max_position_embeddings",
        "pos_att_type",
        "relative_attention",
        "position_biased_input",
    ),
    read=_read_distances,
    write=_write_distances,
)
WIDTHS = Rule(("embedding_size", "attention_head_size"), read=_read_widths)
V2 = Rule(
    ("conv_kernel_size", "norm_rel_ebd", "share_att_key", "position_buckets"),
    read=_read_v2,
    write=_write_v2,
)
WITHOUT_EFFECT = (
    *ENCODER_TIED,
    "cls_dropout",
    "conv_act",  # of a convolution
    "conv_groups",
    "legacy",  # names of the modules of the token output
    "padding_idx",
    "pooler_dropout",
    "pooler_hidden_size",  # the stored tensors tell
)
REQUIRED_VALUES = {"pooler_hidden_act": ("gelu", None), "talking_head": (False, None)}
CONSTANTS = {"legacy": False}

# Weights.

BASE_MODEL = "deberta."
MODULES: Modules = {
    "deberta.embeddings.word_embeddings": "tokens",
    "deberta.embeddings.token_type_embeddings": "encoder.embedding.types",
    "deberta.embeddings.LayerNorm": "encoder.embedding.norm",
    "deberta.encoder.rel_embeddings": "encoder.stack.positions.table",
    "lm_predictions.lm_head": "output",
    "lm_predictions.lm_head.dense": "output.transform",
    "lm_predictions.lm_head.LayerNorm": "output.norm",
}
V2_MODULES: Modules = {
    **MODULES,
    "deberta.encoder.LayerNorm": "encoder.stack.positions.norm",
    "mask_predictions.LayerNorm": "detection.norm",
    "mask_predictions.dense": "detection.transform",
    "mask_predictions.classifier": "detection.score",
}
OUTSIDE_OF_ATTENTION: Modules = {
    name: ours for name, ours in BERT_LAYER.items() if not name.startswith("attention.self.")
}
LAYER: Modules = {
    **OUTSIDE_OF_ATTENTION,
    "attention.self.in_proj": Fused(("attention.query", "attention.key", "attention.value"), by_axis="kv_heads"),
    "attention.self.q_bias": Stored(("attention.query.bias",), is_vector=True),
    "attention.self.v_bias": Stored(("attention.value.bias",), is_vector=True),
    "attention.self.pos_proj": "attention.positions.key",
    "attention.self.pos_q_proj": "attention.positions.query",
}
V2_LAYER: Modules = {
    **OUTSIDE_OF_ATTENTION,
    "attention.self.query_proj": "attention.query",
    "attention.self.key_proj": "attention.key",
    "attention.self.value_proj": "attention.value",
    "attention.self.pos_key_proj": "attention.positions.key",
    "attention.self.pos_query_proj": "attention.positions.query",
}
LAYERS = "deberta.encoder.layer.{layer}"
OUTPUT_PREFIXES = (*HEAD_PREFIXES, "lm_predictions.", "mask_predictions.", "pooler.")
LEGACY_OUTPUT = {
    r"^cls\.predictions\.transform\.": "lm_predictions.lm_head.",
    r"^cls\.predictions\.bias$": "lm_predictions.lm_head.bias",
    r"^mask_predictions\.classifer\.": "mask_predictions.classifier.",
}
"""Names in files that Transformers has written with `legacy`, and a misspelt name in the authors' code."""
COPIES = {
    "cls.predictions.decoder.weight": "deberta.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "lm_predictions.lm_head.bias",
}
UNUSED_POSITIONS = (r"deberta\.embeddings\.position_(ids|embeddings\.weight)",)
"""The table of absolute positions, which the enhanced mask decoder of pretraining alone reads."""


def _classifier(name: str) -> Architecture:
    """Return the class that scores the labels of a text, through a dense layer on the first token's state."""
    return Architecture(
        name,
        objective=None,
        outputs=(),
        settings=NO_TOKEN_OUTPUT,
        marker_tensor="classifier.weight",
        modules={"pooler.dense": "head.pooler", "classifier": "head.scores"},
        is_classifier=True,
        head_activation="gelu",
    )


DETECTION = Architecture(
    "DebertaV2Model",
    objective=None,
    outputs=("detection",),
    settings={**NO_TOKEN_OUTPUT, "detection_context": True},
    marker_tensor="mask_predictions.dense.weight",
)
"""The discriminator of DeBERTa-v3, of which Transformers reads the encoder alone."""

# Model types.

DEBERTA = ModelType(
    name="deberta",
    architectures=(masked_lm("DebertaForMaskedLM"), _classifier("DebertaForSequenceClassification")),
    headless=headless("DebertaModel"),
    config=ConfigTable(
        FIELDS,
        {**BERT_FIXED, "key_bias": False},
        CONSTANTS,
        rules=(DISTANCES, WIDTHS),
        required_values=REQUIRED_VALUES,
        without_effect=WITHOUT_EFFECT,
    ),
    weights=WeightTable(modules=MODULES, stacks=(StackModules(LAYERS, "encoder.stack.layers", LAYER),)),
    tokenizer_class="DebertaTokenizer",
    head_prefixes=OUTPUT_PREFIXES,
    base_model_prefix=BASE_MODEL,
    ignored_tensors=UNUSED_POSITIONS,
    copies=COPIES,
    renamed_tensors=LEGACY_OUTPUT,
)
"""He et al. 2021: disentangled attention, with projections of distances and without biases of keys."""

DEBERTA_V2 = ModelType(
    name="deberta-v2",
    architectures=(
        masked_lm("DebertaV2ForMaskedLM"),
        DETECTION,
        _classifier("DebertaV2ForSequenceClassification"),
    ),
    headless=headless("DebertaV2Model"),
    config=ConfigTable(
        FIELDS,
        BERT_FIXED,
        CONSTANTS,
        rules=(DISTANCES, WIDTHS, V2),
        required_values=REQUIRED_VALUES,
        without_effect=WITHOUT_EFFECT,
    ),
    weights=WeightTable(modules=V2_MODULES, stacks=(StackModules(LAYERS, "encoder.stack.layers", V2_LAYER),)),
    tokenizer_class="DebertaV2Tokenizer",
    head_prefixes=OUTPUT_PREFIXES,
    base_model_prefix=BASE_MODEL,
    ignored_tensors=UNUSED_POSITIONS,
    unused_tensors=(r"lm_predictions\..*",),
    copies=COPIES,
    renamed_tensors=LEGACY_OUTPUT,
)
"""He et al. 2023 and the code of DeBERTa v2: buckets of distances, projected as queries and keys are."""
