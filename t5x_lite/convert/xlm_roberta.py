"""XLM-RoBERTa in Hugging Face's format: RoBERTa with another vocabulary."""

from dataclasses import replace

from t5x_lite.convert.bert import ROBERTA
from t5x_lite.convert.model_type import Architecture


def _rename(architecture: Architecture) -> Architecture:
    return replace(architecture, name=f"XLM{architecture.name}")


assert ROBERTA.headless is not None
XLM_ROBERTA = replace(
    ROBERTA,
    name="xlm-roberta",
    architectures=tuple(_rename(architecture) for architecture in ROBERTA.architectures),
    headless=_rename(ROBERTA.headless),
    tokenizer_class="XLMRobertaTokenizer",
)
"""Conneau et al. 2020: RoBERTa on a hundred languages."""
