"""The decoder of ModernBERT's architecture in Hugging Face's format, of which Ettin's decoders are."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from t5x_lite.convert.bert import TOKEN_OUTPUT
from t5x_lite.convert.config_table import ForeignConfig, check_count
from t5x_lite.convert.model_type import HEAD_PREFIXES, Architecture, ModelType, tied_output
from t5x_lite.convert.modernbert import (
    MODERNBERT,
    MODERNBERT_CONFIG,
    MODERNBERT_LAYER,
    OUTPUT_ACTIVATION,
    WindowFields,
    half_of_local_attention,
    layers_rule,
)
from t5x_lite.convert.weight_map import Modules, StackModules, Stored, WeightTable


def _read_window(config: Mapping[str, Any]) -> int:
    """Return `sliding_window`; without it, half of `local_attention`, which counts the query's own key here."""
    window = config.get("sliding_window")
    if window is None:
        return half_of_local_attention(config)
    return check_count("sliding_window", window)


def _write_window(window: int, config: ForeignConfig) -> None:
    config["local_attention"] = 2 * window
    config["sliding_window"] = window


WINDOW = WindowFields(("local_attention", "sliding_window"), _read_window, _write_window)
OUTPUT_MATRIX = "decoder.weight"
SEPARATE_QUERIES: Modules = {
    "attn.q_proj": "attention.query",
    "attn.k_proj": "attention.key",
    "attn.v_proj": "attention.value",
}
LAYER: Modules = {
    **{foreign: ours for foreign, ours in MODERNBERT_LAYER.items() if foreign != "attn.Wqkv"},
    **SEPARATE_QUERIES,
}

MODERNBERT_DECODER = ModelType(
    name="modernbert-decoder",
    architectures=(Architecture("ModernBertDecoderForCausalLM", objective="causal", settings=TOKEN_OUTPUT),),
    head_prefixes=(*HEAD_PREFIXES, "decoder."),
    output_matrix=OUTPUT_MATRIX,
    config=replace(
        MODERNBERT_CONFIG,
        fixed={**MODERNBERT_CONFIG.fixed, "family": "decoder"},
        rules=(layers_rule(WINDOW), OUTPUT_ACTIVATION, tied_output(OUTPUT_MATRIX)),
    ),
    weights=WeightTable(
        modules={
            "model.embeddings.tok_embeddings": "tokens",
            "model.embeddings.norm": "decoder.embedding.norm",
            "model.final_norm": "decoder.stack.final_norm",
            "lm_head.dense": "output.transform",
            "lm_head.norm": "output.norm",
            "decoder": "output.matrix",
            "decoder.bias": Stored(("output.bias",)),
        },
        stacks=(StackModules("model.layers.{layer}", "decoder.stack.layers", LAYER),),
    ),
    tokenizer_class=MODERNBERT.tokenizer_class,
    base_model_prefix=MODERNBERT.base_model_prefix,
    ignored_tensors=MODERNBERT.ignored_tensors,
    copies=MODERNBERT.copies,
)
"""Weller et al. 2025, §3: ModernBERT with causal attention."""
