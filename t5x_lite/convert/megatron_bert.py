"""Megatron's BERT in Hugging Face's format: norms before the sublayers, none of the embeddings."""

from dataclasses import replace

from t5x_lite.convert.bert import BERT, BERT_FIELDS, BERT_FIXED, BERT_LAYER, BERT_WEIGHTS, ENCODER_TIED
from t5x_lite.convert.config_table import ConfigTable
from t5x_lite.convert.weight_map import Modules, StackModules, WeightTable

CLASS_PREFIX = "Megatron"
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

assert BERT.headless is not None
MEGATRON_BERT = replace(
    BERT,
    name="megatron-bert",
    architectures=tuple(architecture.with_prefix(CLASS_PREFIX) for architecture in BERT.architectures),
    headless=BERT.headless.with_prefix(CLASS_PREFIX),
    config=ConfigTable(
        BERT_FIELDS,
        fixed={**BERT_FIXED, "embedding_norm": False, "norm_place": "pre"},
        without_effect=ENCODER_TIED,
    ),
    weights=PRE_NORM_WEIGHTS,
    renamed_tensors={},
)
"""Shoeybi et al. 2020, §3 and figure 7: BERT with the norms moved before the sublayers, which larger models need."""
