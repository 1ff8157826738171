"""Megatron's BERT in Hugging Face's format: norms before the sublayers, none of the embeddings."""

from t5x_lite.convert.bert import (
    BERT,
    BERT_FIXED,
    BERT_LAYER,
    BERT_WEIGHTS,
    ENCODER_TIED,
    classifier,
    encoder_fields,
    headless,
    masked_lm,
    masked_lm_with_sentences,
)
from t5x_lite.convert.config_table import ConfigTable
from t5x_lite.convert.model_type import ModelType
from t5x_lite.convert.weight_map import Modules, StackModules, WeightTable

EMBEDDING_NORM = "bert.embeddings.LayerNorm"
PRE_NORM_LAYER: Modules = {
    **{name: ours for name, ours in BERT_LAYER.items() if not name.endswith("LayerNorm")},
    "attention.ln": "attention_norm",
    "ln": "feedforward_norm",
}
PRE_NORM_WEIGHTS = WeightTable(
    modules={
        **{name: ours for name, ours in BERT_WEIGHTS.modules.items() if name != EMBEDDING_NORM},
        "bert.encoder.ln": "encoder.stack.final_norm",
    },
    stacks=(StackModules("bert.encoder.layer.{layer}", "encoder.stack.layers", PRE_NORM_LAYER),),
)

MEGATRON_BERT = ModelType(
    name="megatron-bert",
    architectures=(
        masked_lm("MegatronBertForMaskedLM"),
        masked_lm_with_sentences("MegatronBertForPreTraining", "next", marker_tensor="cls.seq_relationship.weight"),
        classifier(
            "MegatronBertForSequenceClassification",
            marker_tensor="classifier.weight",
            modules={"bert.pooler.dense": "head.pooler", "classifier": "head.scores"},
        ),
    ),
    headless=headless("MegatronBertModel"),
    config=ConfigTable(
        encoder_fields(unused_rows=0),
        fixed={**BERT_FIXED, "embedding_norm": False, "norm_place": "pre"},
        without_effect=ENCODER_TIED,
    ),
    weights=PRE_NORM_WEIGHTS,
    tokenizer_class=BERT.tokenizer_class,
    base_model_prefix=BERT.base_model_prefix,
    ignored_tensors=BERT.ignored_tensors,
    unused_tensors=BERT.unused_tensors,
    copies=BERT.copies,
)
"""Shoeybi et al. 2020, §3 and figure 7: BERT with the norms moved before the sublayers, which larger models need."""
