"""Weights from and to other code bases. A model type of Transformers is one declaration and one entry here."""

from t5x_lite.convert import (
    bert,
    bloom,
    distilbert,
    eurobert,
    falcon,
    gemma,
    gpt,
    gpt_neox,
    llama,
    megatron_bert,
    modernbert,
    qwen,
    qwen_moe,
    t5,
    xlm_roberta,
)
from t5x_lite.convert.model_type import ModelType

_MODEL_TYPES = (
    t5.T5,
    t5.MT5,
    t5.UMT5,
    t5.SWITCH,
    distilbert.DISTILBERT,
    bert.BERT,
    bert.ROBERTA,
    xlm_roberta.XLM_ROBERTA,
    bert.ALBERT,
    bert.ELECTRA,
    megatron_bert.MEGATRON_BERT,
    eurobert.EUROBERT,
    modernbert.MODERNBERT,
    gpt.GPT2,
    gpt.GPT_NEO,
    gpt.OPT,
    gpt_neox.GPT_NEOX,
    falcon.FALCON,
    bloom.BLOOM,
    llama.LLAMA,
    llama.MISTRAL,
    llama.MIXTRAL,
    llama.OLMO2,
    qwen.QWEN2,
    qwen.QWEN3,
    qwen_moe.QWEN3_MOE,
    gemma.GEMMA,
    gemma.GEMMA2,
    gemma.GEMMA3,
)
MODEL_TYPES: dict[str, ModelType] = {model_type.name: model_type for model_type in _MODEL_TYPES}
"""Model types of Hugging Face Transformers by name. A model is exported as the first one that can hold it."""
