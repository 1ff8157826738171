"""DPR's encoders of questions and of passages in Hugging Face's format: BERT, whose first state is the vector."""

from t5x_lite.convert.bert import BERT_FIELDS, BERT_FIXED, BERT_LAYER, BERT_WEIGHTS, ENCODER_TIED
from t5x_lite.convert.config_table import ConfigTable
from t5x_lite.convert.model_type import NO_TOKEN_OUTPUT, Architecture, ModelType
from t5x_lite.convert.weight_map import StackModules, WeightTable

QUESTIONS = "question_encoder."
PASSAGES = "ctx_encoder."
BASE_MODEL = f"{QUESTIONS}bert_model"
EMBEDDINGS = "bert.embeddings."

DPR_WEIGHTS = WeightTable(
    modules={
        name.replace("bert.", f"{BASE_MODEL}.", 1): ours
        for name, ours in BERT_WEIGHTS.modules.items()
        if name.startswith(EMBEDDINGS)
    },
    stacks=(StackModules(BASE_MODEL + ".encoder.layer.{layer}", "encoder.stack.layers", BERT_LAYER),),
)
DPR_ENCODER = Architecture(
    "DPRQuestionEncoder",
    objective=None,
    outputs=(),
    settings={**NO_TOKEN_OUTPUT, "head": {"outputs": 0, "pool": "first"}},
)
DPR = ModelType(
    name="dpr",
    architectures=(DPR_ENCODER,),
    headless=DPR_ENCODER,
    config=ConfigTable(
        BERT_FIELDS,
        BERT_FIXED,
        constants={"projection_dim": 0},
        required_values={"projection_dim": (0, None)},
        without_effect=ENCODER_TIED,
    ),
    weights=DPR_WEIGHTS,
    tokenizer_class="BertTokenizer",
    ignored_tensors=(r".*\.embeddings\.position_ids",),
    unused_tensors=(r".*\.pooler\..*",),
    variants={"DPRContextEncoder": (QUESTIONS, PASSAGES)},
)
"""Karpukhin et al. 2020, §3.1. Two folders of Transformers, and two runs: one for questions, one for passages."""
