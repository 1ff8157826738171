"""Fields of a foreign config.json that do not change what a model computes.

A field that is neither read nor listed here is refused, because it may ask for another computation. So are the fields
of `REQUIRED_VALUES` with any value but the listed ones.
"""

from collections.abc import Collection, Mapping
from typing import Any

from t5x_lite.errors import UserError

DESCRIPTIONS = {
    "_name_or_path",
    "_model_name_or_path",  # written for weights from a GGUF file
    "architectures",
    "auto_map",
    "dtype",
    "model_type",
    "name_or_path",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "transformers.js_config",
    "model_max_length",
    "n_ctx",  # the context length again
    "n_special",
    "output_past",
    "predict_special_tokens",
    "gradient_checkpointing",
    "onnx_export",
    "directionality",
    "language",
    "license",
    "finetuning_task",
    "problem_type",
    "id2label",
    "label2id",
    "num_labels",
    "_num_labels",
    "task_specific_params",
}
"""Fields that describe the files, or that tools other than the model read."""

OUTPUT_FORMATS = {
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "add_router_probs",
    "return_dict",
    "use_return_dict",
    "use_cache",
    "torchscript",
    "chunk_size_feed_forward",  # the same sums in parts
    "pretraining_tp",  # the same sums in parts
    "_attn_implementation",
    "attn_implementation",
    "_attn_implementation_autoset",
    "reorder_and_upcast_attn",  # float32 is used here anyway
    "use_bfloat16",
    "tf_legacy_loss",
    "is_encoder_decoder",  # follows from the model type
}
"""Fields that change what a call returns, or how it is computed, but not its numbers."""

GENERATION = {
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "mask_token_id",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "pad_token_id",
    "prefix",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "sep_token_id",
    "unk_token_id",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
}
"""Settings of generation, and special tokens."""

TRAINING = {
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "embd_pdrop",
    "embed_dropout",
    "init_std",
    "initializer_factor",
    "initializer_range",
    "layerdrop",
    "router_jitter_noise",
}
"""Dropout and initialisation."""

OTHER_HEADS = {
    "classifier_dropout",
    "classifier_dropout_prob",
    "summary_activation",
    "summary_first_dropout",
    "summary_last_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "gap_size",
    "net_structure_type",
    "num_memory_blocks",
    "down_scale_factor",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
}
"""Settings of heads that are not imported, and leftovers of older converters without any effect in Transformers."""

WITHOUT_EFFECT = DESCRIPTIONS | OUTPUT_FORMATS | GENERATION | TRAINING | OTHER_HEADS

REQUIRED_VALUES: Mapping[str, tuple[object, ...]] = {
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "is_decoder": (False, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "tie_encoder_decoder": (False, None),
    "position_embedding_type": ("absolute", None),
}
"""Fields whose other values ask for another computation, and the values that do not."""


DEQUANTIZED_BY = {
    "mxfp4": "Transformers does it by AutoModelForCausalLM.from_pretrained(DIR, dtype='bfloat16', "
    "quantization_config=Mxfp4Config(dequantize=True)).save_pretrained(NEW_DIR)",
    "fp8": "DeepSeek's fp8_cast_bf16.py does it; then remove quantization_config from its config.json",
}
"""For each method of quantization, what makes plain weights of them."""


def check_fields(
    config: Mapping[str, Any], fields_read: Collection[str], required_values: Mapping[str, tuple[object, ...]]
) -> None:
    """Refuse fields that may change what the model computes and are not read.

    Args:
        config: the foreign config.
        fields_read: the fields that are converted.
        required_values: further fields of the model type, and the values that are supported.

    Raises:
        UserError: names all such fields with their values.
    """
    values_by_field = {**REQUIRED_VALUES, **required_values}
    problems = []
    for name, value in config.items():
        if name == "quantization_config":
            _check_unquantized(value)
        if name in values_by_field:
            if value not in values_by_field[name]:
                supported = " or ".join(str(supported) for supported in values_by_field[name] if supported is not None)
                problems.append(f"{name}={_shorten(value)} is not supported (only {supported or 'null'})")
        elif name not in fields_read and name not in WITHOUT_EFFECT:
            problems.append(f"the field {_shorten(name)}={_shorten(value)} is not known")
    if problems:
        raise UserError("; ".join(problems))


def _check_unquantized(quantization: object) -> None:
    """Refuse weights that are stored in a quantized type, with the way to have them in a plain one."""
    if not isinstance(quantization, Mapping) or "quant_method" not in quantization:
        return
    method = quantization["quant_method"]
    remedy = "save the model in a plain type with the tool that quantized it"
    if method in DEQUANTIZED_BY:
        remedy = f"save the model as bfloat16 first: {DEQUANTIZED_BY[method]}"
    raise UserError(f"the weights are quantized ({_shorten(method)}), which is not read; {remedy}")


def _shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
