"""The decoder of ModernBERT's architecture in Hugging Face's format, of which Ettin's decoders are."""

from dataclasses import replace

from t5x_lite.convert.bert import TOKEN_OUTPUT
from t5x_lite.convert.model_type import HEAD_PREFIXES, Architecture, ModelType, tied_output
from t5x_lite.convert.modernbert import MODERNBERT, MODERNBERT_CONFIG, MODERNBERT_LAYER, OUTPUT_ACTIVATION, layers_rule
from t5x_lite.convert.weight_map import Modules, StackModules, Stored, WeightTable

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
        rules=(layers_rule(extra_keys=0), OUTPUT_ACTIVATION, tied_output(OUTPUT_MATRIX)),
        # Transformers sets it from `local_attention`, whatever a file says.
        without_effect=(*MODERNBERT_CONFIG.without_effect, "sliding_window"),
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
"""Weller et al. 2025, §3: ModernBERT with causal attention; `local_attention` counts the query's own key here."""
