"""Configs of released checkpoints, whose fields have older names, and fields that are refused by name."""

import pytest

from t5x_lite.config import load
from t5x_lite.convert import MODEL_TYPES
from t5x_lite.convert.config_table import ForeignConfig, ForeignModel, resolve_settings
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.positions import Rotary
from t5x_lite.models.positions.alibi import ALiBi
from tests.conftest import REPOSITORY

FALCON = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
NEOX = {**FALCON, "intermediate_size": 48}
BLOOM_560M = {
    "vocab_size": 250880,
    "n_embed": 1024,
    "n_layer": 24,
    "num_attention_heads": 16,
    "n_inner": None,
    "offset_alibi": 100,
    "seq_length": 2048,
    "masked_softmax_fusion": True,
    "skip_bias_add": True,
}
MODERNBERT = {
    **NEOX,
    "num_hidden_layers": 4,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 5000.0,
    "local_rope_theta": 50.0,
    "local_attention": 128,
    "position_embedding_type": "absolute",
}
BART = {
    "vocab_size": 96,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_hidden_layers": 2,
    "normalize_before": False,
    "add_bias_logits": False,
}


MAMBA2_130M = {
    "chunk_size": 256,
    "conv_kernel": 4,
    "expand": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 768,
    "intermediate_size": 1536,
    "layer_norm_epsilon": 1e-05,
    "n_groups": 1,
    "norm_before_gate": True,
    "num_heads": 24,
    "num_hidden_layers": 24,
    "rescale_prenorm_residual": False,
    "residual_in_fp32": True,
    "rms_norm": True,
    "state_size": 128,
    "tie_word_embeddings": True,
    "time_step_floor": 0.0001,
    "time_step_init_scheme": "random",
    "time_step_limit": [0.0, float("inf")],
    "time_step_max": 0.1,
    "time_step_min": 0.001,
    "time_step_rank": 256,
    "time_step_scale": 1.0,
    "use_bias": False,
    "use_conv_bias": True,
    "vocab_size": 50288,
}
RECURRENT_GEMMA_2B = {
    "_block_types": ["recurrent", "recurrent", "attention"],
    "attention_bias": False,
    "attention_window_size": 2048,
    "conv1d_width": 4,
    "embeddings_scale_by_sqrt_dim": True,
    "final_w_init_variance_scale": 0.07692307692307693,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2560,
    "intermediate_size": 15360,
    "logits_soft_cap": 30.0,
    "lru_width": 2560,
    "num_attention_heads": 10,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "vocab_size": 256000,
    "w_init_variance_scale": 0.01,
}


QWEN3_NEXT_80B = {
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "full_attention_interval": 4,
    "head_dim": 256,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 262144,
    "mlp_only_layers": [],
    "moe_intermediate_size": 512,
    "norm_topk_prob": True,
    "num_attention_heads": 16,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "output_router_logits": False,
    "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000000,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 512,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


QWEN25_7B = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
FALCON_7B = {
    "alibi": False,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "bias": False,
    "hidden_dropout": 0.0,
    "hidden_size": 4544,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "multi_query": True,
    "new_decoder_architecture": False,
    "num_attention_heads": 71,
    "num_hidden_layers": 32,
    "parallel_attn": True,
    "vocab_size": 65024,
}
FALCON_40B = {
    **FALCON_7B,
    "hidden_size": 8192,
    "new_decoder_architecture": True,
    "num_attention_heads": 128,
    "num_hidden_layers": 60,
    "num_kv_heads": 8,
}
OPT_125M = {
    "activation_dropout": 0.0,
    "activation_function": "relu",
    "attention_dropout": 0.0,
    "do_layer_norm_before": True,
    "dropout": 0.1,
    "ffn_dim": 3072,
    "hidden_size": 768,
    "init_std": 0.02,
    "layerdrop": 0.0,
    "max_position_embeddings": 2048,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "prefix": "</s>",
    "vocab_size": 50272,
    "word_embed_proj_dim": 768,
}
UMT5_SMALL = {
    "d_ff": 1024,
    "d_kv": 64,
    "d_model": 512,
    "decoder_start_token_id": 0,
    "dense_act_fn": "gelu_new",
    "dropout_rate": 0.1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-06,
    "num_decoder_layers": 8,
    "num_heads": 6,
    "num_layers": 8,
    "output_past": True,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "scalable_attention": True,
    "tie_word_embeddings": False,
    "tokenizer_class": "T5Tokenizer",
    "vocab_size": 256384,
}
GEMMA2_9B = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "num_attention_heads": 16,
    "num_hidden_layers": 42,
    "num_key_value_heads": 8,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "sliding_window_size": 4096,
    "vocab_size": 256000,
}
GPT_NEOX_20B = {
    "attention_probs_dropout_prob": 0,
    "hidden_act": "gelu_fast",
    "hidden_dropout_prob": 0,
    "hidden_size": 6144,
    "initializer_range": 0.02,
    "intermediate_size": 24576,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "num_attention_heads": 64,
    "num_hidden_layers": 44,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "vocab_size": 50432,
}
SMOLLM3_3B = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "layer_types": ["full_attention"] * 36,
    "max_position_embeddings": 65536,
    "max_window_layers": 28,
    "mlp_bias": False,
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 4,
    "pretraining_tp": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
    "vocab_size": 128256,
}


def read(name: str, config: ForeignConfig, tensors: tuple[str, ...] = ()) -> ModelConfig:
    settings = MODEL_TYPES[name].read_settings(ForeignModel(config, tensors))
    return ModelConfig.model_validate(settings)


def test_older_fields_of_gpt_neox_are_read() -> None:
    model = read("gpt_neox", {**NEOX, "rotary_pct": 0.5, "rotary_emb_base": 500})
    assert model.positions == Rotary(theta=500.0, share=0.5)
    newer = {**NEOX, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}}
    assert read("gpt_neox", newer) == model


def test_gpt_oss_without_a_base_of_wavelengths_has_that_of_transformers() -> None:
    """`GptOssConfig.default_theta` is 150000, where other decoders have 10000."""
    yarn = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}
    sizes = {**NEOX, "num_key_value_heads": 2, "rope_scaling": yarn}
    model = read("gpt_oss", sizes)
    assert isinstance(model.positions, Rotary)
    assert model.positions.theta == 150000
    assert read("gpt_oss", {**sizes, "rope_theta": 150000.0}) == model


def test_the_released_config_of_bloom_is_read() -> None:
    model = read("bloom", BLOOM_560M)
    assert (model.layers, model.embed, model.heads, model.mlp) == (24, 1024, 16, 4096)


@pytest.mark.parametrize(
    ("name", "released", "config", "overrides"),
    [
        ("mamba2", MAMBA2_130M, "mamba2/130m", []),
        ("recurrent_gemma", RECURRENT_GEMMA_2B, "recurrentgemma/2b", []),
        ("qwen3_next", QWEN3_NEXT_80B, "qwen3_next/80b_a3b", []),
        ("qwen2", QWEN25_7B, "qwen2.5/7b", []),
        ("falcon", FALCON_7B, "falcon/7b", []),
        ("falcon", FALCON_40B, "falcon/40b", []),
        ("opt", OPT_125M, "opt/125m", []),
        ("umt5", UMT5_SMALL, "umt5/small", ["model.dropout=0.1", "model.feedforward.glu.dropout=0.1"]),
        ("gemma2", GEMMA2_9B, "gemma2/9b", []),
        ("gpt_neox", GPT_NEOX_20B, "gptneox/20b", []),
        ("smollm3", SMOLLM3_3B, "smollm3/3b", ["model.positions.rotary.theta=5e6"]),  # of the longest contexts
    ],
)
def test_released_configs_are_those_of_ours(
    name: str, released: ForeignConfig, config: str, overrides: list[str]
) -> None:
    """All but what training alone needs."""
    ours = load(REPOSITORY / f"configs/{config}.yaml", overrides).model
    output_matrix = MODEL_TYPES[name].output_matrix
    model = read(name, released, (output_matrix,) if released.get("tie_word_embeddings") is False else ())
    settings = resolve_settings(ours)
    differing = {key for key, value in resolve_settings(model).items() if settings.get(key) != value}
    assert {key.split(".")[0] for key in differing} <= {"init", "compute", "remat"}


def test_older_fields_of_modernbert_are_read() -> None:
    model = read("modernbert", MODERNBERT)
    assert [layer.attention.model_dump() for layer in model.pattern] == [{}, {"window": 65}, {"window": 65}, {}]
    assert [layer.norm for layer in model.pattern] == [False, True, True, True]
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    rope = {kinds[0]: {"rope_theta": 5000.0}, kinds[1]: {"rope_theta": 50.0}}
    assert read("modernbert", {**MODERNBERT, "layer_types": kinds, "rope_parameters": rope}) == model


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("falcon", {**FALCON, "alibi": True}, "alibi=True is not supported"),
        ("falcon", {**FALCON, "num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn=2 is not supported"),
        ("falcon", {**FALCON, "new_decoder_architecture": True, "parallel_attn": False}, "parallel_attn=False"),
        ("falcon", {**FALCON, "multi_query": False, "num_kv_heads": 2}, "num_kv_heads=2 is not supported"),
        ("falcon", {**FALCON_7B, "apply_residual_connection_post_layernorm": True}, "post_layernorm=True"),
        ("qwen2", {**QWEN25_7B, "use_mrope": True}, r"use_mrope=True is not supported \(only False\)"),
        ("gemma2", {**GEMMA2_9B, "sliding_window_size": 512}, "size=512 contradicts sliding_window=4096"),
        ("smollm3", {**SMOLLM3_3B, "use_sliding_window": True}, "use_sliding_window=True is not supported"),
        ("gpt_neox", {**GPT_NEOX_20B, "hidden_act": "gelu_10"}, "activation 'gelu_10' is not supported"),
        ("bloom", {**BLOOM_560M, "apply_residual_connection_post_layernorm": True}, "post_layernorm=True"),
        ("bloom", {"vocab_size": 96, "n_layer": 2, "n_head": 4}, "'hidden_size' is missing"),
        ("modernbert", {**MODERNBERT, "classifier_activation": "relu"}, "classifier_activation=relu"),
        ("modernbert", {**MODERNBERT, "decoder_bias": False}, "decoder_bias=False is not supported"),
        ("modernbert", {**MODERNBERT, "layer_types": ["full_attention"]}, "for each of 4 layers"),
        ("mamba2", {**MAMBA2_130M, "num_heads": 23}, "num_heads=23 of head_dim=64 is not expand=2 times"),
        ("mamba2", {**MAMBA2_130M, "time_step_limit": [0.0, 1.0]}, r"time_step_limit=\[0.0, 1.0\] is not supported"),
        ("recurrent_gemma", {**RECURRENT_GEMMA_2B, "hidden_activation": "silu"}, "hidden_activation=silu"),
        ("recurrent_gemma", {**RECURRENT_GEMMA_2B, "block_types": ["state"]}, "supported are recurrent, attention"),
        ("recurrent_gemma", {**RECURRENT_GEMMA_2B, "intermediate_size": 7}, "intermediate_size=7 is not even"),
        (
            "qwen3_next",
            {**QWEN3_NEXT_80B, "layer_types": ["full_attention"]},
            "lists 1 layers, but num_hidden_layers is 48",
        ),
        (
            "qwen3_next",
            {**QWEN3_NEXT_80B, "layer_types": ["window"] * 48},
            "supported are linear_attention, full_attention",
        ),
        (
            "qwen3_next",
            {**QWEN3_NEXT_80B, "shared_expert_intermediate_size": 768},
            "is not a multiple of moe_intermediate",
        ),
        ("qwen3_next", {**QWEN3_NEXT_80B, "hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ("bart", {**BART, "decoder_attention_heads": 2}, "decoder_attention_heads=2 is not supported"),
        ("bart", {**BART, "normalize_before": True}, "normalize_before=True is not supported"),
    ],
)
def test_fields_that_no_setting_stands_for_are_refused_by_name(name: str, config: ForeignConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(name, config)


def test_alibis_slopes_for_twelve_heads_are_those_of_the_authors_code() -> None:
    """The eight slopes of eight heads, then every other slope of sixteen."""
    first = [2.0**-power for power in range(1, 9)]
    others = [2.0**-power for power in (0.5, 1.5, 2.5, 3.5)]
    assert ALiBi(slopes="powers_of_two").slopes_of(12) == pytest.approx(first + others)
    assert ALiBi(slopes="powers_of_two").slopes_of(8) == pytest.approx(first)
    assert ALiBi().slopes_of(8) == pytest.approx(first)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sublayers": "parallel", "norm_place": "post"}, "is for norm_place: pre"),
        ({"sublayers": "parallel", "family": "encoder_decoder"}, "without cross-attention"),
        ({"start_token": 2}, "start_token is for encoder_decoder"),
        ({"start_token": 96, "family": "encoder_decoder"}, "not in a vocabulary of 96"),
        ({"positions": {"rotary": {"share": 0.4}}}, "even head_dim times share 0.4, found 3 of 8"),
        ({"pattern": [{"norm": False}], "norm_place": "post"}, "norm: false of a layer"),
    ],
)
def test_combinations_that_cannot_be_computed_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.model_validate({"vocab": 96, "layers": 2, "embed": 32, "heads": 4, **settings})
