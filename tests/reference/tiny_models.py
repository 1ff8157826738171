"""Tiny models of Hugging Face Transformers, one or more for each model type, and the objectives to train them on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import transformers
from transformers import PreTrainedModel

VOCAB = 96
EMBED = 32

Setting = object
"""A value of a Transformers config."""


@dataclass(frozen=True)
class TinyModel:
    """A model of Transformers.

    Attributes:
        objective: the objective whose loss is compared. After a comma follows the task of a sentence output.
        build: builds the model with random weights.
    """

    objective: str
    build: Callable[[], PreTrainedModel]


def build_t5(**settings: Setting) -> PreTrainedModel:
    sizes = {"vocab_size": VOCAB, "d_model": EMBED, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 3}
    config = transformers.T5Config(**{**sizes, "decoder_start_token_id": 0, **settings})
    return transformers.T5ForConditionalGeneration(config)


def build_untied_t5() -> PreTrainedModel:
    model = build_t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False, num_decoder_layers=3)
    # Transformers 5.23 leaves the output tied to the embedding whatever the config says.
    model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCAB, EMBED) * 0.1)
    return model


def build_umt5(**settings: Setting) -> PreTrainedModel:
    sizes = {"vocab_size": VOCAB, "d_model": EMBED, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 3}
    config = transformers.UMT5Config(**{**sizes, "decoder_start_token_id": 0, **settings})
    return transformers.UMT5ForConditionalGeneration(config)


def build_long_t5(**settings: Setting) -> PreTrainedModel:
    sizes = {"vocab_size": VOCAB, "d_model": EMBED, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 3}
    sizes |= {"local_radius": 5, "global_block_size": 4, "decoder_start_token_id": 0}
    config = transformers.LongT5Config(**{**sizes, **settings})
    return transformers.LongT5ForConditionalGeneration(config)


def build_switch(**settings: Setting) -> PreTrainedModel:
    sizes = {
        "vocab_size": VOCAB,
        "d_model": EMBED,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 4,
        "num_decoder_layers": 2,
        "num_sparse_encoder_layers": 2,
        "num_sparse_decoder_layers": 1,
        "num_heads": 3,
        "num_experts": 4,
        "expert_capacity": 6,
        "decoder_start_token_id": 0,
    }
    config = transformers.SwitchTransformersConfig(**{**sizes, **settings})
    return transformers.SwitchTransformersForConditionalGeneration(config)


COMMON_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": EMBED,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}


def build_encoder(name: str, head: str, **settings: Setting) -> PreTrainedModel:
    """Build the class `{name}For{head}`."""
    config_class = getattr(transformers, f"{name}Config")
    config = config_class(**{**COMMON_SIZES, "max_position_embeddings": 40, **settings})
    return getattr(transformers, f"{name}For{head}")(config)


def build_xlnet() -> PreTrainedModel:
    sizes = {"vocab_size": VOCAB, "d_model": EMBED, "n_layer": 2, "n_head": 4, "d_inner": 48}
    return transformers.XLNetLMHeadModel(transformers.XLNetConfig(**sizes))


def build_llama(name: str, **settings: Setting) -> PreTrainedModel:
    """Build the class `{name}ForCausalLM`, whose config has Llama's fields."""
    config_class = getattr(transformers, f"{name}Config")
    config = config_class(**{**COMMON_SIZES, "num_key_value_heads": 2, **settings})
    return getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config)


def build_bart() -> PreTrainedModel:
    sizes = {"vocab_size": VOCAB, "d_model": EMBED, "max_position_embeddings": 80, "forced_eos_token_id": None}
    for stack, layers in (("encoder", 2), ("decoder", 3)):
        sizes |= {f"{stack}_layers": layers, f"{stack}_attention_heads": 4, f"{stack}_ffn_dim": 48}
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes))


def build_t5gemma(**settings: Setting) -> PreTrainedModel:
    """Build T5Gemma with an encoder of four layers and a decoder of two."""
    stack = {
        **COMMON_SIZES,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "query_pre_attn_scalar": 144,
        "sliding_window": 4,
    }
    stack |= {"attn_logit_softcapping": 2.0}
    config = transformers.T5GemmaConfig(
        encoder={**stack, "num_hidden_layers": 4}, decoder=stack, vocab_size=VOCAB, **settings
    )
    return transformers.T5GemmaForConditionalGeneration(config)


def build_distilbert() -> PreTrainedModel:
    sizes = {"vocab_size": VOCAB, "dim": EMBED, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}
    return transformers.DistilBertForMaskedLM(transformers.DistilBertConfig(**sizes, max_position_embeddings=40))


def build_xlm(**settings: Setting) -> PreTrainedModel:
    sizes = {"vocab_size": VOCAB, "emb_dim": EMBED, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 40}
    return transformers.XLMWithLMHeadModel(transformers.XLMConfig(**{**sizes, **settings}))


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
HALF_ROPE = {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0, "partial_rotary_factor": 0.5}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
LLAMA3_ROPE_OF_THE_CONTEXT = {name: value for name, value in LLAMA3_ROPE.items() if not name.startswith("original")}
YARN_ROPE_OF_THE_CONTEXT = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 256,
    "beta_fast": 16.0,
}


GEMMA_SIZES = {
    "tie_word_embeddings": False,
    "num_hidden_layers": 5,
    "head_dim": 12,
    "query_pre_attn_scalar": 144,
    "sliding_window": 4,
}
"""Windows in turn, the last repeat cut short. A tied output of scaled embeddings would repeat the last token."""
GEMMA3_LAYERS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0},
}


WINDOWS_IN_TURN = {
    "num_hidden_layers": 4,
    "use_sliding_window": True,
    "sliding_window": 4,
    "layer_types": ["full_attention", "sliding_attention"] * 2,
}


def build_gpt2() -> PreTrainedModel:
    config = transformers.GPT2Config(vocab_size=VOCAB, n_embd=EMBED, n_layer=2, n_head=4, n_positions=80)
    return transformers.GPT2LMHeadModel(config)


def build_gpt_neo() -> PreTrainedModel:
    config = transformers.GPTNeoConfig(
        vocab_size=VOCAB,
        hidden_size=EMBED,
        num_layers=4,
        num_heads=4,
        attention_types=[[["global", "local"], 2]],
        window_size=4,
        max_position_embeddings=40,
    )
    return transformers.GPTNeoForCausalLM(config)


def build_gpt_neox(**settings: Setting) -> PreTrainedModel:
    config = transformers.GPTNeoXConfig(**{**COMMON_SIZES, **settings})
    return transformers.GPTNeoXForCausalLM(config)


def build_falcon(**settings: Setting) -> PreTrainedModel:
    sizes = {"vocab_size": VOCAB, "hidden_size": EMBED, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.FalconConfig(**{**sizes, "ffn_hidden_size": 48, **settings})
    return transformers.FalconForCausalLM(config)


def build_bloom(**settings: Setting) -> PreTrainedModel:
    sizes = {"vocab_size": VOCAB, "hidden_size": 48, "n_layer": 2, "n_head": 6}
    return transformers.BloomForCausalLM(transformers.BloomConfig(**{**sizes, **settings}))


def build_opt(**settings: Setting) -> PreTrainedModel:
    sizes = {"vocab_size": VOCAB, "hidden_size": EMBED, "word_embed_proj_dim": EMBED, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "ffn_dim": 48, "max_position_embeddings": 80}
    return transformers.OPTForCausalLM(transformers.OPTConfig(**{**sizes, **settings}))


def build_mamba2(**settings: Setting) -> PreTrainedModel:
    sizes = {"vocab_size": VOCAB, "hidden_size": EMBED, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8}
    config = transformers.Mamba2Config(**{**sizes, "state_size": 6, "n_groups": 2, "chunk_size": 8, **settings})
    return transformers.Mamba2ForCausalLM(config)


def build_recurrent_gemma(**settings: Setting) -> PreTrainedModel:
    sizes = {**COMMON_SIZES, "num_hidden_layers": 4, "num_key_value_heads": 1, "lru_width": 40}
    config = transformers.RecurrentGemmaConfig(**{**sizes, "attention_window_size": 6, **settings})
    return transformers.RecurrentGemmaForCausalLM(config)


EUROBERT = {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MODERNBERT = {
    "num_hidden_layers": 5,
    "local_attention": 6,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "cls_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
}
DEBERTA = {
    "relative_attention": True,
    "position_biased_input": False,
    "max_position_embeddings": 8,
    "pos_att_type": ["c2p", "p2c"],
    "legacy": False,
}
"""Distances from 8 on are alike, in rows of 20."""
DEBERTA_V3 = {
    **DEBERTA,
    "max_position_embeddings": 16,
    "position_buckets": 4,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
}
ALBERT_GROUPS = {"num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2}
NO_BIASES = {"enable_bias": False, "layer_norm_elementwise_affine": False}
QWEN3_EXPERTS = {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 16}
QWEN2_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 24,
    "decoder_sparse_step": 2,
}
EXPERTS_IN_EVERY_OTHER_LAYER = {**QWEN3_EXPERTS, "decoder_sparse_step": 2, "num_experts_per_tok": 1}


LATENT_ATTENTION = {
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
EXPERT_GROUPS = {"n_group": 4, "topk_group": 2}
YARN_ROPE_OF_ALL_CHANNELS = {**YARN_ROPE, "mscale": 1.0, "mscale_all_dim": 0.7}


def build_deepseek_v3(**settings: Setting) -> PreTrainedModel:
    """Build DeepSeek-V3 with biases that change the choice of experts."""
    model = build_llama("DeepseekV3", **{**LATENT_ATTENTION, **EXPERT_GROUPS, **settings})
    for name, bias in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            bias.copy_(0.2 * torch.randn(bias.shape))
    return model


QWEN3_NEXT = {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 5,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 24,
}
EXPERTS_IN_THE_SECOND_LAYER = {"num_hidden_layers": 2, "decoder_sparse_step": 2, "full_attention_interval": 2}


GPT_OSS = {
    "num_hidden_layers": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "head_dim": 8,
    "sliding_window": 4,
    "swiglu_limit": 0.5,
    "rope_parameters": {**YARN_ROPE, "truncate": False},
}


TINY_MODELS = {
    "T5 v1.0": TinyModel("span_corruption", build_t5),
    "T5 v1.1": TinyModel("span_corruption", build_untied_t5),
    "umT5": TinyModel("span_corruption", build_umt5),
    "LongT5, local": TinyModel("span_corruption", build_long_t5),
    "LongT5": TinyModel(
        "span_corruption",
        partial(
            build_long_t5,
            encoder_attention_type="transient-global",
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        ),
    ),
    "Switch": TinyModel("span_corruption", build_switch),
    "Switch, room for all": TinyModel("span_corruption", partial(build_switch, expert_capacity=100)),
    "BART": TinyModel("span_corruption", build_bart),
    "T5Gemma": TinyModel("span_corruption", build_t5gemma),
    "T5Gemma, untied": TinyModel("span_corruption", partial(build_t5gemma, tie_word_embeddings=False)),
    "BERT": TinyModel("masked, next sentence", partial(build_encoder, "Bert", "PreTraining")),
    "BERT, MLM alone": TinyModel("masked", partial(build_encoder, "Bert", "MaskedLM")),
    "RoBERTa": TinyModel("masked", partial(build_encoder, "Roberta", "MaskedLM", type_vocab_size=1)),
    "XLM-R": TinyModel("masked", partial(build_encoder, "XLMRoberta", "MaskedLM", type_vocab_size=1)),
    "DistilBERT": TinyModel("masked", build_distilbert),
    "XLM": TinyModel("masked", partial(build_xlm, n_langs=3)),
    "XLM, one language": TinyModel("masked", partial(build_xlm, gelu_activation=False)),
    "XLM, sinusoidal": TinyModel("masked", partial(build_xlm, n_langs=3, sinusoidal_embeddings=True)),
    "ALBERT": TinyModel("masked, sentence order", partial(build_encoder, "Albert", "PreTraining", embedding_size=16)),
    "ALBERT, groups": TinyModel("masked", partial(build_encoder, "Albert", "MaskedLM", **ALBERT_GROUPS)),
    "ELECTRA generator": TinyModel("masked", partial(build_encoder, "Electra", "MaskedLM", embedding_size=16)),
    "ELECTRA": TinyModel("replaced_token", partial(build_encoder, "Electra", "PreTraining", embedding_size=16)),
    "Megatron BERT": TinyModel("masked, next sentence", partial(build_encoder, "MegatronBert", "PreTraining")),
    "EuroBERT": TinyModel("masked", partial(build_encoder, "EuroBert", "MaskedLM", **EUROBERT)),
    "EuroBERT, tied": TinyModel(
        "masked", partial(build_encoder, "EuroBert", "MaskedLM", tie_word_embeddings=True, **EUROBERT)
    ),
    "XLNet": TinyModel("permutation", build_xlnet),
    "ModernBERT": TinyModel("masked", partial(build_encoder, "ModernBert", "MaskedLM", **MODERNBERT)),
    "DeBERTa": TinyModel("masked", partial(build_encoder, "Deberta", "MaskedLM", type_vocab_size=2, **DEBERTA)),
    "DeBERTa-v2": TinyModel(
        "masked", partial(build_encoder, "DebertaV2", "MaskedLM", **{**DEBERTA, "pos_att_type": ["p2c"]})
    ),
    "DeBERTa-v3": TinyModel("masked", partial(build_encoder, "DebertaV2", "MaskedLM", **DEBERTA_V3)),
    "ModernBERT decoder": TinyModel(
        "causal", partial(build_encoder, "ModernBertDecoder", "CausalLM", **{**MODERNBERT, "local_attention": 10})
    ),
    "SmolLM3": TinyModel(
        "causal", partial(build_llama, "SmolLM3", num_hidden_layers=4, no_rope_layer_interval=2, pad_token_id=0)
    ),
    "GPT-2": TinyModel("causal", build_gpt2),
    "GPT-Neo": TinyModel("causal", build_gpt_neo),
    "OPT": TinyModel("causal", build_opt),
    "OPT-350M": TinyModel("causal", partial(build_opt, word_embed_proj_dim=16, do_layer_norm_before=False)),
    "OPT without biases": TinyModel("causal", partial(build_opt, **NO_BIASES)),
    "GPT-NeoX": TinyModel("causal", build_gpt_neox),
    "GPT-NeoX, sequential": TinyModel(
        "causal",
        partial(build_gpt_neox, use_parallel_residual=False, attention_bias=False, rope_parameters=HALF_ROPE),
    ),
    "Falcon 7B": TinyModel("causal", build_falcon),
    "Falcon 40B": TinyModel("causal", partial(build_falcon, new_decoder_architecture=True, num_kv_heads=2)),
    "Falcon 11B": TinyModel(
        "causal",
        partial(build_falcon, new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1, bias=True),
    ),
    "Falcon, sequential": TinyModel("causal", partial(build_falcon, parallel_attn=False, multi_query=False)),
    "BLOOM": TinyModel("causal", build_bloom),
    "Llama 2": TinyModel("causal", partial(build_llama, "Llama")),
    "Llama, biases": TinyModel("causal", partial(build_llama, "Llama", attention_bias=True, mlp_bias=True)),
    "Llama, biases of attention": TinyModel("causal", partial(build_llama, "Llama", attention_bias=True)),
    "Llama 3.1": TinyModel("causal", partial(build_llama, "Llama", rope_parameters=LLAMA3_ROPE)),
    "Llama, dynamic": TinyModel(
        "causal", partial(build_llama, "Llama", rope_parameters=DYNAMIC_ROPE, max_position_embeddings=32)
    ),
    "Llama, linear": TinyModel("causal", partial(build_llama, "Llama", rope_parameters=LINEAR_ROPE)),
    "Llama, YaRN": TinyModel("causal", partial(build_llama, "Llama", rope_parameters=YARN_ROPE)),
    "Mistral": TinyModel("causal", partial(build_llama, "Mistral", sliding_window=4)),
    "Mixtral": TinyModel("causal", partial(build_llama, "Mixtral", num_local_experts=4)),
    "OLMo 2": TinyModel("causal", partial(build_llama, "Olmo2")),
    "Qwen2": TinyModel("causal", partial(build_llama, "Qwen2")),
    "Qwen3": TinyModel("causal", partial(build_llama, "Qwen3", head_dim=16)),
    "Qwen3, windows": TinyModel("causal", partial(build_llama, "Qwen3", head_dim=8, **WINDOWS_IN_TURN)),
    "Qwen3-MoE": TinyModel(
        "causal", partial(build_llama, "Qwen3Moe", num_experts_per_tok=2, norm_topk_prob=True, **QWEN3_EXPERTS)
    ),
    "Qwen2-MoE": TinyModel("causal", partial(build_llama, "Qwen2Moe", **QWEN2_EXPERTS)),
    "Qwen3-MoE, probabilities": TinyModel(
        "causal", partial(build_llama, "Qwen3Moe", num_experts_per_tok=2, **QWEN3_EXPERTS)
    ),
    "Llama 3.1, context": TinyModel(
        "causal",
        partial(build_llama, "Llama", rope_parameters=LLAMA3_ROPE_OF_THE_CONTEXT, max_position_embeddings=16),
    ),
    "Llama, YaRN, context": TinyModel(
        "causal", partial(build_llama, "Llama", rope_parameters=YARN_ROPE_OF_THE_CONTEXT, max_position_embeddings=64)
    ),
    "Gemma": TinyModel("causal", partial(build_llama, "Gemma", head_dim=16)),
    "Gemma 2": TinyModel("causal", partial(build_llama, "Gemma2", attn_logit_softcapping=2.0, **GEMMA_SIZES)),
    "Gemma 3": TinyModel(
        "causal",
        partial(build_llama, "Gemma3Text", layer_types=GEMMA3_LAYERS, rope_parameters=GEMMA3_ROPE, **GEMMA_SIZES),
    ),
    "Qwen3-MoE, one expert": TinyModel("causal", partial(build_llama, "Qwen3Moe", **EXPERTS_IN_EVERY_OTHER_LAYER)),
    "Mamba-2": TinyModel("causal", build_mamba2),
    "Mamba-2, tied": TinyModel("causal", partial(build_mamba2, tie_word_embeddings=True, n_groups=1)),
    "RecurrentGemma": TinyModel("causal", build_recurrent_gemma),
    "Hawk": TinyModel("causal", partial(build_recurrent_gemma, block_types=["recurrent"], use_cache=False)),
    "DeepSeek-V2": TinyModel(
        "causal",
        partial(
            build_llama,
            "DeepseekV2",
            topk_method="group_limited_greedy",
            routed_scaling_factor=3.0,
            **LATENT_ATTENTION,
            **EXPERT_GROUPS,
        ),
    ),
    "DeepSeek-V2-Lite": TinyModel(
        "causal",
        partial(
            build_llama,
            "DeepseekV2",
            rope_parameters=YARN_ROPE_OF_ALL_CHANNELS,
            **{**LATENT_ATTENTION, "q_lora_rank": None},
        ),
    ),
    "DeepSeek-V3": TinyModel("causal", build_deepseek_v3),
    "Qwen3-Next": TinyModel("causal", partial(build_llama, "Qwen3Next", **QWEN3_NEXT)),
    "Qwen3-Next, biases": TinyModel(
        "causal",
        partial(
            build_llama,
            "Qwen3Next",
            attention_bias=True,
            tie_word_embeddings=True,
            **{**QWEN3_NEXT, **EXPERTS_IN_THE_SECOND_LAYER},
        ),
    ),
    "gpt-oss": TinyModel("causal", partial(build_llama, "GptOss", **GPT_OSS)),
    "DeepSeek-V3, halves": TinyModel(
        "causal",
        partial(build_deepseek_v3, rope_interleave=False, rope_parameters=YARN_ROPE_OF_ALL_CHANNELS),
    ),
}
