"""Weights from and to other code bases. One class a foreign family, one entry here."""

from t5x_lite.convert.bert import Albert, Bert, Electra, Roberta
from t5x_lite.convert.family import Family
from t5x_lite.convert.gpt import GPT2, OPT, GPTNeo
from t5x_lite.convert.llama import Llama, Mistral, Mixtral, OLMo2
from t5x_lite.convert.t5 import T5, SwitchTransformers

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        T5("t5", "T5ForConditionalGeneration"),
        T5("mt5", "MT5ForConditionalGeneration", scaled=False),
        T5("umt5", "UMT5ForConditionalGeneration", shared=False),
        SwitchTransformers(),
        Bert(),
        Roberta(),
        Albert(),
        Electra(),
        GPT2(),
        GPTNeo(),
        OPT(),
        Llama(),
        Mistral(),
        Mixtral(),
        OLMo2(),
    )
}
"""Model types of Hugging Face Transformers; the first that fits a model is what it is exported as."""
