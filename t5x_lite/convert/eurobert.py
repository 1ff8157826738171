"""EuroBERT in Hugging Face's format: a Llama that reads both ways and predicts masked tokens."""

from dataclasses import replace

from t5x_lite.convert.bert import headless, masked_lm
from t5x_lite.convert.classifier import is_named
from t5x_lite.convert.config_table import ConfigTable, ForeignModel, Rule, Settings
from t5x_lite.convert.llama import (
    ATTENTION_BIAS,
    HEAD_DIM,
    LLAMA,
    LLAMA_FIXED,
    LLAMA_LAYER,
    NO_BIAS,
    ROTARY,
    llama_fields,
)
from t5x_lite.convert.model_type import NO_TOKEN_OUTPUT, TIED_OUTPUT
from t5x_lite.convert.weight_map import StackModules, WeightTable

MASKED_LM = "EuroBertForMaskedLM"


def _read_tied(source: ForeignModel, settings: Settings) -> None:
    """Read whether the output matrix is tied; an encoder alone has none."""
    if is_named(MASKED_LM, source.config):
        TIED_OUTPUT.read(source, settings)


TIED_OR_HEADLESS = Rule(("tie_word_embeddings", "architectures"), read=_read_tied, write=TIED_OUTPUT.write)

EUROBERT = replace(
    LLAMA,
    name="eurobert",
    architectures=(replace(masked_lm(MASKED_LM), settings=NO_TOKEN_OUTPUT, may_be_tied=True),),
    headless=headless("EuroBertModel"),
    config=ConfigTable(
        (*llama_fields(1e-5), ATTENTION_BIAS),
        fixed={**LLAMA_FIXED, "family": "encoder", "feedforward_bias": False},
        rules=(HEAD_DIM, ROTARY, TIED_OR_HEADLESS),
        required_values={"mlp_bias": NO_BIAS},
        without_effect=("classifier_pooling",),
    ),
    weights=WeightTable(
        modules={"model.embed_tokens": "tokens", "model.norm": "encoder.stack.final_norm", "lm_head": "output.matrix"},
        stacks=(StackModules("model.layers.{layer}", "encoder.stack.layers", LLAMA_LAYER),),
    ),
    tokenizer_class="PreTrainedTokenizerFast",
)
"""Boizard et al. 2025, §2.1: pre-norm RMSNorm, rotary positions, grouped queries, SwiGLU, no biases."""
