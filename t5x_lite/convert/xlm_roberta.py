"""XLM-RoBERTa in Hugging Face's format: RoBERTa with another vocabulary."""

from dataclasses import replace

from t5x_lite.convert.bert import ROBERTA

CLASS_PREFIX = "XLM"

assert ROBERTA.headless is not None
XLM_ROBERTA = replace(
    ROBERTA,
    name="xlm-roberta",
    architectures=tuple(architecture.with_prefix(CLASS_PREFIX) for architecture in ROBERTA.architectures),
    headless=ROBERTA.headless.with_prefix(CLASS_PREFIX),
    tokenizer_class="XLMRobertaTokenizer",
)
"""Conneau et al. 2020: RoBERTa on a hundred languages."""
