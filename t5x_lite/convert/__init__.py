"""Weights from and to other code bases. One class a foreign family, one entry here."""

from t5x_lite.convert import bert, gpt, llama, t5
from t5x_lite.convert.family import Family

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        t5.T5("t5", "T5ForConditionalGeneration"),
        t5.T5("mt5", "MT5ForConditionalGeneration", scaled=False),
        t5.T5("umt5", "UMT5ForConditionalGeneration", shared=False),
        t5.SwitchTransformers(),
        bert.Bert(),
        bert.Roberta(),
        bert.Albert(),
        bert.Electra(),
        gpt.GPT2(),
        gpt.GPTNeo(),
        gpt.OPT(),
        llama.Llama(),
        llama.Mistral(),
        llama.Mixtral(),
        llama.OLMo2(),
    )
}
"""Model types of Hugging Face Transformers; the first that fits a model is what it is exported as."""
