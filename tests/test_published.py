"""Every shipped config of a published size loads, has the published number of parameters, and can be exported if
Transformers has its family."""

from pathlib import Path

import pytest

from t5x_lite import config as configuration
from t5x_lite.convert.matching import find_model_type
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.spec import model_spec
from t5x_lite.trees import flatten_names

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

PUBLISHED = {
    # Radford et al. 2018 gives no count; "117M" is that of the released model in the Hugging Face documentation.
    "gpt1/117m": 117e6,
    # Brown et al. 2020, Table 2.1.
    "gpt3/125m": 125e6,
    "gpt3/350m": 350e6,
    "gpt3/760m": 760e6,
    "gpt3/1.3b": 1.3e9,
    "gpt3/2.7b": 2.7e9,
    "gpt3/6.7b": 6.7e9,
    "gpt3/13b": 13.0e9,
    "gpt3/175b": 175.0e9,
    # Black et al. 2021: the models' names.
    "gptneo/125m": 125e6,
    "gptneo/1.3b": 1.3e9,
    "gptneo/2.7b": 2.7e9,
    # Zhang et al. 2022, Table 1.
    "opt/125m": 125e6,
    "opt/350m": 331_196_416,
    "opt/1.3b": 1.3e9,
    "opt/2.7b": 2.7e9,
    "opt/6.7b": 6.7e9,
    "opt/13b": 13.0e9,
    "opt/30b": 30.0e9,
    "opt/66b": 66.0e9,
    "opt/175b": 175.0e9,
    # Touvron et al. 2023a, Table 2.
    "llama/7b": 6.7e9,
    "llama/13b": 13.0e9,
    "llama/33b": 32.5e9,
    "llama/65b": 65.2e9,
    # Biderman et al. 2023: the models' names; released checkpoints, whose buffers are not counted.
    "pythia/70m": 70_426_624,
    "pythia/160m": 162_322_944,
    "pythia/410m": 405_334_016,
    "pythia/1b": 1_011_781_632,
    "pythia/1.4b": 1_414_647_808,
    "pythia/2.8b": 2_775_208_960,
    "pythia/6.9b": 6_857_302_016,
    "pythia/12b": 11_846_072_320,
    # Black et al. 2022, §2.1: 20B, of which 19.9B are no embeddings.
    "gptneox/20b": 20_554_567_680,
    # Released checkpoints; those of 7B and 180B store their embedding twice, 7.22B and 179.5B in all.
    "falcon/7b": 7_217_189_760 - 65024 * 4544,
    "falcon/40b": 41_303_293_952,
    "falcon/180b": 179_522_565_120 - 65024 * 14848,
    # Le Scao et al. 2022, Table 3.
    "bloom/560m": 559e6,
    "bloom/1.1b": 1_065e6,
    "bloom/1.7b": 1_722e6,
    "bloom/3b": 3_003e6,
    "bloom/7.1b": 7_069e6,
    "bloom/176b": 176_247e6,
    # Released checkpoints.
    "llama2/7b": 6_738_415_616,
    "llama2/13b": 13_015_864_320,
    "llama2/70b": 68_976_648_192,
    "llama3/8b": 8_030_261_248,
    "llama3/70b": 70_553_706_496,
    "llama3/405b": 405e9,
    "llama3/3.2_1b": 1_235_814_400,
    "llama3/3.2_3b": 3_212_749_824,
    "mistral/7b": 7_241_732_096,
    "olmo2/1b": 1_484_916_736,
    "olmo2/7b": 7_298_617_344,
    "olmo2/13b": 13_716_198_400,
    "olmo2/32b": 32_234_279_936,
    # Released checkpoints of Qwen 2.5 and SmolLM.
    "qwen2.5/0.5b": 494_032_768,
    "qwen2.5/1.5b": 1_543_714_304,
    "qwen2.5/3b": 3_085_938_688,
    "qwen2.5/7b": 7_615_616_512,
    "qwen2.5/14b": 14_770_033_664,
    "qwen2.5/32b": 32_763_876_352,
    "qwen2.5/72b": 72_706_203_648,
    "smollm/135m": 134_515_008,
    "smollm/360m": 361_821_120,
    "smollm/1.7b": 1_711_376_384,
    "smollm3/3b": 3_075_098_624,
    # Released checkpoints of Qwen3, counted by hand; Yang et al. 2025, §2, say 235B and 30B.
    "qwen3/0.6b": 596_049_920,
    "qwen3/1.7b": 1_720_574_976,
    "qwen3/4b": 4_022_468_096,
    "qwen3/8b": 8_190_735_360,
    "qwen3/14b": 14_768_307_200,
    "qwen3/32b": 32_762_123_264,
    "qwen3/30b_a3b": 30_532_122_624,
    "qwen3/235b_a22b": 235_093_634_560,
    # Rae et al. 2021, Table 1.
    "gopher/44m": 44e6,
    "gopher/117m": 117e6,
    "gopher/417m": 417e6,
    "gopher/1.4b": 1.4e9,
    "gopher/7.1b": 7.1e9,
    "gopher/280b": 280e9,
    # Chowdhery et al. 2022, Table 1.
    "palm/8b": 8.63e9,
    "palm/62b": 62.50e9,
    "palm/540b": 540.35e9,
    # Released checkpoints of Gemma 1 and 2.
    "gemma/2b": 2_506_172_416,
    "gemma/7b": 8_537_680_896,
    "gemma2/2b": 2_614_341_888,
    "gemma2/9b": 9_241_705_984,
    "gemma2/27b": 27_227_128_320,
    # The released checkpoint of Gemma 3 270M.
    "gemma3/270m": 268_098_176,
    # Gemma Team 2025, Table 1: embedding and other parameters, without the vision encoder.
    "gemma3/1b": 302e6 + 698e6,
    "gemma3/4b": 675e6 + 3_209e6,
    "gemma3/12b": 1_012e6 + 10_759e6,
    "gemma3/27b": 1_416e6 + 25_600e6,
    # The released checkpoints: 139M and 406M, by BartForConditionalGeneration of Transformers.
    "bart/base": 139_420_416,
    "bart/large": 406_291_456,
    # Raffel et al. 2020, §3.7: 60M, 220M, 770M, 2.8B, 11B.
    "t5/small": 60e6,
    "t5/base": 220e6,
    "t5/3b": 2.8e9,
    "t5/11b": 11e9,
    # Released checkpoints of T5 v1.1; sizes in the repository: 77M, 250M, 800M, 3B, 11B.
    "t5_1_1/small": 77e6,
    "t5_1_1/base": 250e6,
    "t5_1_1/large": 783_150_080,
    "t5_1_1/xl": 2_849_757_184,
    "t5_1_1/xxl": 11e9,
    # T5 v1.1 without its output matrix of 32,128 rows; the transient global models add a norm in each layer of the
    # encoder and a table of 32 buckets.
    "long_t5/local_base": 247_577_856 - 32_128 * 768,
    "long_t5/local_large": 783_150_080 - 32_128 * 1024,
    "long_t5/local_xl": 2_849_757_184 - 32_128 * 2048,
    "long_t5/base": 247_577_856 - 32_128 * 768 + 12 * 768 + 32 * 12,
    "long_t5/large": 783_150_080 - 32_128 * 1024 + 24 * 1024 + 32 * 16,
    "long_t5/xl": 2_849_757_184 - 32_128 * 2048 + 24 * 2048 + 32 * 32,
    # Released checkpoints of T5Gemma.
    "t5gemma/s": 312_517_632,
    "t5gemma/b": 591_490_560,
    "t5gemma/l": 1_241_761_792,
    "t5gemma/xl": 3_766_980_608,
    "t5gemma/2b_2b": 5_596_853_760,
    "t5gemma/9b_9b": 20_333_401_088,
    # Xue et al. 2021, Table 1.
    "mt5/small": 300e6,
    "mt5/base": 580e6,
    "mt5/large": 1.2e9,
    "mt5/xl": 3.7e9,
    "mt5/xxl": 13e9,
    # Xue et al. 2022, Table 1.
    "byt5/small": 300e6,
    "byt5/base": 582e6,
    "byt5/large": 1.23e9,
    "byt5/xl": 3.74e9,
    "byt5/xxl": 12.9e9,
    # Devlin et al. 2019, §3; Liu et al. 2019, Table 9; Lan et al. 2020, Table 1; Clark et al. 2020, Table 1.
    "bert/base": 110e6,
    "bert/large": 340e6,
    "roberta/base": 125e6,
    "roberta/large": 355e6,
    # The authors' repository: parameters of the backbone; and an embedding of 50,265 or 128,100 rows.
    "deberta/base": 100e6 + 50_265 * 768,
    "deberta/large": 350e6 + 50_265 * 1024,
    "deberta_v3/xsmall": 22e6 + 128_100 * 384,
    "deberta_v3/small": 44e6 + 128_100 * 768,
    "deberta_v3/base": 86e6 + 128_100 * 768,
    "deberta_v3/large": 304e6 + 128_100 * 1024,
    # Released checkpoints of XLNet, counted by hand in the test below: 116.8M and 360.3M.
    "xlnet/base": 116_750_336,
    "xlnet/large": 360_300_800,
    # The released checkpoint with its output; Sanh et al. 2019, Table 3, say 66M.
    "distilbert/base": 66_985_530,
    # Released checkpoints; Warner et al. 2024, §2.1, say 149M and 395M.
    "modernbert/base": 149_655_232,
    "modernbert/large": 395_881_664,
    # Portes et al. 2023, Table 1.
    "mosaicbert/base": 137e6,
    # Le Breton et al. 2025, §3.
    "neobert/250m": 250e6,
    # Weller et al. 2025, §3: the models' names.
    "ettin/encoder_17m": 17e6,
    "ettin/encoder_32m": 32e6,
    "ettin/encoder_68m": 68e6,
    "ettin/encoder_150m": 150e6,
    "ettin/encoder_400m": 400e6,
    "ettin/encoder_1b": 1e9,
    "ettin/decoder_17m": 17e6,
    "ettin/decoder_32m": 32e6,
    "ettin/decoder_68m": 68e6,
    "ettin/decoder_150m": 150e6,
    "ettin/decoder_400m": 400e6,
    "ettin/decoder_1b": 1e9,
    # Released checkpoints with their outputs: 178.6M, 278.3M and 560.1M.
    "bert/multilingual": 178_566_653,
    "xlm_roberta/base": 278_295_186,
    "xlm_roberta/large": 560_142_482,
    # Released checkpoints, counted by hand; Conneau et al. 2020, Table 1, say 250M for that of 15 languages.
    "xlm/mlm_en_2048": 667_119_041,
    "xlm/mlm_tlm_xnli15_1024": 249_071_384,
    "albert/base": 12e6,
    "albert/large": 18e6,
    "albert/xlarge": 60e6,
    "electra/small": 14e6,
    "electra/base": 110e6,
    "electra/large": 335e6,
    # Vaswani et al. 2017, Table 3.
    "transformer/big": 213e6,
    # Fedus et al. 2022, Table 9 (base with 128 experts 7B, XXL 395B, C 1571B); the other sizes are the released ones.
    "switch/base_8": 620e6,
    "switch/base_16": 1.07e9,
    "switch/base_32": 1.98e9,
    "switch/base_64": 3.8e9,
    "switch/base_128": 7.4e9,
    "switch/base_256": 14.7e9,
    "switch/large_128": 26.3e9,
    "switch/xxl_128": 395e9,
    "switch/c_2048": 1571e9,
    # The released checkpoint; Jiang et al. 2024, §2.1, say 47B.
    "mixtral/8x7b": 46_702_792_704,
    # Liu et al. 2024a, appendix B and §3.1.2; Liu et al. 2024b, §4.2.
    "deepseek_v2/lite": 15.7e9,
    "deepseek_v2/236b": 236e9,
    "deepseek_v3/671b": 671e9,
    # The model card: 14.3B.
    "qwen1.5_moe/a2.7b": 14.3e9,
    # Qwen Team 2025, the model card: 80B in total, 79B without embeddings.
    "qwen3_next/80b_a3b": 79e9 + 2 * 151_936 * 2048,
    # Released checkpoints; OpenAI 2025, Table 1, says 20.91B and 116.83B.
    "gpt_oss/20b": 20_914_757_184,
    "gpt_oss/120b": 116_829_156_672,
    # Merity et al. 2017, Table 1, and Merity et al. 2018, Table 1.
    "rnn/mikolov": 6e6,
    "rnn/zaremba_medium": 20e6,
    "rnn/zaremba_large": 66e6,
    "rnn/awd_lstm": 24e6,
    # Dai et al. 2019, Table 2.
    "transformer_xl/enwik8_12l": 41e6,
    "transformer_xl/enwik8_24l": 277e6,
    # De et al. 2024, appendix C: the models' names.
    "griffin/400m": 400e6,
    "griffin/1.3b": 1.3e9,
    "griffin/3b": 3e9,
    # Dao & Gu 2024, §9.2: the models' names.
    "mamba2/130m": 130e6,
    "mamba2/370m": 370e6,
    "mamba2/780m": 780e6,
    "mamba2/1.3b": 1.3e9,
    "mamba2/2.7b": 2.7e9,
    # Yang et al. 2025, §4: the models' names.
    "gated_deltanet/1.3b": 1.3e9,
    "gated_deltanet/h1_1.3b": 1.3e9,
    # Botev et al. 2024: the released checkpoints.
    "recurrentgemma/2b": 2_682_862_080,
    "recurrentgemma/9b": 8_579_977_216,
    # Artetxe et al. 2022, Table 1.
    "gpt3/1.3b_moe": 207e9,
    # AllenNLP's page of its released models, without the softmax.
    "elmo/small": 13.6e6,
    "elmo/medium": 28.0e6,
    "elmo/original": 93.6e6,
}

RECOUNTED = {
    # The paper's Table 2 says 117M, 345M, 762M, 1542M; the released weights hold these.
    "gpt2/117m": (117e6, 124_439_808),
    "gpt2/345m": (345e6, 354_823_168),
    "gpt2/762m": (762e6, 774_030_080),
    "gpt2/1542m": (1542e6, 1_557_611_200),
    # Raffel et al. 2020 says 770M; the released weights hold these.
    "t5/large": (770e6, 737_668_096),
    # Lan et al. 2020, Table 1 says 235M; the released weights hold 222.6M, and the heads of pre-training come to these.
    "albert/xxlarge": (235e6, 223_158_450),
    # Vaswani et al. 2017 says 65M, with a vocabulary that is not given exactly ("about 37000").
    "transformer/base": (65e6, 63_082_496),
    # Chung et al. 2023 names the sizes alone; the released weights hold these.
    "umt5/small": (300e6, 306_601_984),
    "umt5/base": (580e6, 592_043_520),
    "umt5/xl": (3.7e9, 3_768_356_864),
    "umt5/xxl": (13e9, 12_972_531_712),
}

GSHARD = {
    "12.5b": (12, 128),
    "37b": (36, 128),
    "50b": (12, 512),
    "150b": (36, 512),
    "200b": (12, 2048),
    "600b": (36, 2048),
}
"""Lepikhin et al. 2021, Table 1: number of layers in both stacks together, and number of experts."""

VARIANTS = {"encoder_decoder": 2.0, "shared": 1.0, "half_layers": 1.0, "language_model": 1.0, "prefix_lm": 1.0}
"""Raffel et al. 2020, Table 2: parameters of the variants relative to a stack of 12 layers without embeddings."""

UNPUBLISHED_FOLDERS = {
    "base",
    "cloze",
    "harness",
    "nanogpt",
    "t5_variants",
    "pods",
    "rl",
    "prompting",
    "schedules",
    "finetune",
    "study",
    "sweeps",
    "tasks",
}


def load_model(name: str) -> ModelConfig:
    return configuration.load(CONFIGS / f"{name}.yaml").model


def count_parameters(name: str) -> int:
    """Return the number of parameters; of ELECTRA those of the discriminator, of ELMo those without the softmax."""
    model = load_model(name)
    if "neighbours" in model.outputs:
        model = model.model_copy(update={"outputs": ()})
    if model.family == "electra":
        model = model.discriminator_model
    return model_spec(model).parameters


UNSCANNED = {
    "ettin/encoder_17m",
    "ettin/decoder_17m",
    "ettin/encoder_32m",
    "ettin/encoder_68m",
    "ettin/encoder_150m",
    "ettin/encoder_400m",
    "ettin/encoder_1b",
    "ettin/decoder_32m",
    "ettin/decoder_68m",
    "ettin/decoder_150m",
    "ettin/decoder_400m",
    "ettin/decoder_1b",
    "gemma3/1b",
    "gemma3/4b",
    "gemma3/27b",
    "modernbert/base",
    "modernbert/large",
    "recurrentgemma/2b",
    "recurrentgemma/9b",
}
"""Models whose pattern does not divide their layers: each layer is traced on its own, which takes seconds."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in UNSCANNED else ()) for name in PUBLISHED]
)
def test_parameters_are_the_published_count(name: str) -> None:
    """A count of all digits is that of released weights. Papers have two or three: "14M" is anything within 3.6 %."""
    published = PUBLISHED[name]
    if isinstance(published, int):
        assert count_parameters(name) == published
    else:
        assert count_parameters(name) == pytest.approx(published, rel=0.036)


@pytest.mark.parametrize("name", RECOUNTED)
def test_parameters_are_the_released_count_if_the_paper_counts_differently(name: str) -> None:
    published, released = RECOUNTED[name]
    assert count_parameters(name) == released
    assert released == pytest.approx(published, rel=0.07)


def test_active_parameters_are_the_published_count() -> None:
    """Jiang et al. 2024, §2.1: Mixtral has 47B parameters, of which 13B are active per token."""
    assert model_spec(load_model("mixtral/8x7b")).active_parameters == pytest.approx(12.9e9, rel=0.005)
    # Liu et al. 2024a, appendix B and §1; Liu et al. 2024b, §1: 2.4B, 21B and 37B. The embedding is not counted.
    # OpenAI 2025, Table 1: 3.61B and 5.13B. Qwen3's cards count the embedding: 3.3B and 22B.
    published = {
        "deepseek_v2/lite": 2.4e9,
        "deepseek_v2/236b": 21e9,
        "deepseek_v3/671b": 37e9,
        "gpt_oss/20b": 3.61e9,
        "gpt_oss/120b": 5.13e9,
    }
    for name, active in {"qwen3/30b_a3b": 3.3e9, "qwen3/235b_a22b": 22e9}.items():
        assert model_spec(load_model(name)).active_parameters == pytest.approx(active, rel=0.02)
    for name, active in published.items():
        model = load_model(name)
        embedding = model.vocab * model.embed
        assert model_spec(model).active_parameters - embedding == pytest.approx(active, rel=0.025)
    # Fedus et al. 2022, §3.1: per token, Switch-Base has the FLOPs of T5-Base and of a router.
    # The model card of Qwen1.5-MoE, with the embeddings.
    assert model_spec(load_model("qwen1.5_moe/a2.7b")).active_parameters == pytest.approx(2.7e9, rel=0.005)
    switch = model_spec(load_model("switch/base_128"))
    dense = model_spec(load_model("t5/base"))
    router_parameters = 12 * 768 * 128
    assert switch.active_parameters == dense.parameters + router_parameters


def test_the_parameters_of_qwen3_next_by_hand() -> None:
    """The model card: 79B without embeddings, of which a token uses 3B; each layer's share is counted below."""
    width, experts, expert = 2048, 512, 3 * 2048 * 512
    keys, values = 16 * 128, 32 * 128
    linear = width * (2 * keys + 2 * values + 2 * 32) + 4 * (2 * keys + values) + 2 * 32 + 128 + values * width
    heads, kv_heads = 16 * 256, 2 * 256
    attention = width * (2 * heads + 2 * kv_heads) + 2 * 256 + heads * width
    feedforward = width * experts + expert + width
    other = 36 * linear + 12 * attention + 48 * (feedforward + 2 * width) + width
    embeddings = 2 * 151_936 * width
    spec = model_spec(load_model("qwen3_next/80b_a3b"))
    assert spec.parameters == other + 48 * experts * expert + embeddings
    assert spec.parameters - embeddings == pytest.approx(79e9, rel=0.01)
    assert spec.active_parameters == other + 48 * 10 * expert + embeddings
    assert round((spec.active_parameters - embeddings) / 1e9) == 3


@pytest.mark.parametrize("name", GSHARD)
def test_gshards_experts_are_those_of_its_table(name: str) -> None:
    """Half of the layers hold experts, each with two matrices of 1024 × 8192.

    Their sum is up to 7 % above the paper's figures, which are rounded to the share of one expert layer in 600B.
    """
    layers, experts = GSHARD[name]
    spec = model_spec(load_model(f"gshard/{name}"))
    expert_parameters = sum(leaf.size for path, leaf in flatten_names(spec.shapes).items() if ".experts." in path)
    assert expert_parameters == layers // 2 * experts * 2 * 1024 * 8192
    assert expert_parameters == pytest.approx(float(name[:-1]) * 1e9, rel=0.07)


def test_debertas_backbones_have_the_released_parameters() -> None:
    """The authors' repository: without the embedding, in millions; v3 with the output that detects replaced tokens."""
    backbones = {"deberta_v3/xsmall": 22, "deberta_v3/small": 44, "deberta_v3/base": 86, "deberta_v3/large": 304}
    for name, millions in backbones.items():
        model = load_model(name)
        assert round((count_parameters(name) - model.vocab * model.embed) / 1e6) == millions
    # v1 by hand, with the output that predicts tokens: attention has six matrices and four biases, a layer two norms, a
    # feed-forward four times as wide, and the table of distances 1024 rows.
    for name, layers, width in (("deberta/base", 12, 768), ("deberta/large", 24, 1024)):
        layer = (6 * width**2 + 4 * width) + (8 * width**2 + 5 * width) + 4 * width
        output = width**2 + width + 2 * width + 50_265
        embeddings = (50_265 + 1024) * width + 2 * width
        assert count_parameters(name) == layers * layer + output + embeddings


def test_every_config_of_a_published_size_is_counted() -> None:
    paths = [path for path in CONFIGS.glob("*/*.yaml") if path.parent.name not in UNPUBLISHED_FOLDERS]
    names = {str(path.relative_to(CONFIGS).with_suffix("")) for path in paths}
    assert names == PUBLISHED.keys() | RECOUNTED.keys() | {f"gshard/{name}" for name in GSHARD}


def test_the_variants_in_t5s_table_2_have_the_stated_parameters() -> None:
    """P is a stack of 12 layers without cross-attention, which the paper does not count."""
    embedding = 32128 * 768
    stack = 12 * (4 * 768**2 + 2 * 768 * 3072)
    cross_attention_of_a_layer = 4 * 768**2
    for name, share in VARIANTS.items():
        layers = 6 if name == "half_layers" else 12
        cross_attention = layers * cross_attention_of_a_layer
        if name in {"language_model", "prefix_lm"}:
            cross_attention = 0
        counted = count_parameters(f"t5_variants/{name}") - embedding - cross_attention
        assert counted == pytest.approx(share * stack, rel=0.001), name


@pytest.mark.parametrize(
    ("name", "model_type"),
    [
        ("albert", "albert"),
        ("bart", "bart"),
        ("bert", "bert"),
        ("bloom", "bloom"),
        ("deberta", "deberta"),
        ("deberta_v3", "deberta-v2"),
        ("deepseek_v2", "deepseek_v2"),
        ("deepseek_v3", "deepseek_v3"),
        ("distilbert", "distilbert"),
        ("ettin/encoder_*", "modernbert"),
        ("ettin/decoder_*", "modernbert-decoder"),
        ("electra", "electra"),
        ("falcon", "falcon"),
        ("gemma", "gemma"),
        ("gemma2", "gemma2"),
        ("gemma3", "gemma3_text"),
        ("gpt2", "gpt2"),
        ("gpt_oss", "gpt_oss"),
        ("gptneo", "gpt_neo"),
        ("gptneox", "gpt_neox"),
        ("llama", "llama"),
        ("llama3", "llama"),
        ("long_t5", "longt5"),
        ("mamba2", "mamba2"),
        ("mistral", "mistral"),
        ("mixtral", "mixtral"),
        ("modernbert", "modernbert"),
        ("olmo2", "olmo2"),
        ("opt", "opt"),
        ("pythia", "gpt_neox"),
        ("qwen1.5_moe", "qwen2_moe"),
        ("qwen2.5", "qwen2"),
        ("qwen3/0.6b", "qwen3"),
        ("qwen3/32b", "qwen3"),
        ("qwen3/*_a*", "qwen3_moe"),
        ("qwen3_next", "qwen3_next"),
        ("recurrentgemma", "recurrent_gemma"),
        ("roberta", "roberta"),
        ("smollm", "llama"),
        ("smollm3", "smollm3"),
        ("t5", "t5"),
        ("t5_1_1", "t5"),
        ("t5gemma", "t5gemma"),
        ("umt5", "umt5"),
        ("xlnet", "xlnet"),
        ("xlm", "xlm"),
    ],
)
def test_published_models_can_be_exported_as_their_family(name: str, model_type: str) -> None:
    """A name is a folder, or a pattern of files."""
    pattern = f"{name}.yaml" if "/" in name else f"{name}/*.yaml"
    paths = list(CONFIGS.glob(pattern))
    assert paths
    for path in paths:
        model = configuration.load(path).model
        if model.generator:
            model = model.discriminator_model
        assert find_model_type(model, None).name == model_type


@pytest.mark.parametrize(
    "setting", ["attention_dropout", "embedding_dropout", "variational_dropout", "pipeline_microbatches"]
)
def test_settings_of_training_alone_do_not_stand_in_the_way_of_an_export(setting: str) -> None:
    values = {"variational_dropout": True, "pipeline_microbatches": 2}
    settings = {
        "layers": 2,
        "embed": 16,
        "heads": 2,
        "vocab": 32,
        "dropout": 0.1,
        "positions": "rotary",
        "norm": "rmsnorm",
    }
    model = ModelConfig.model_validate(
        {**settings, "feedforward": "glu", "bias": False, "tied": False, setting: values.get(setting, 0.05)}
    )
    assert find_model_type(model, None).name == "llama"


@pytest.mark.parametrize(("name", "obstacle"), [("gpt3/175b", "pattern"), ("gpt1/117m", "norm_place 'post'")])
def test_a_model_that_transformers_lacks_is_refused_with_the_reason(name: str, obstacle: str) -> None:
    with pytest.raises(UserError, match=obstacle):
        find_model_type(load_model(name), None)


def test_inconsistent_sizes_in_gpt3s_table_are_corrected() -> None:
    """Table 2.1: 24 heads of 128 do not fit XL's width of 2048, and 13B's width of 5140 is no multiple of 40 heads."""
    for name, heads, width in (("1.3b", 16, 2048), ("13b", 40, 5120)):
        model = load_model(f"gpt3/{name}")
        assert (model.heads, model.embed, model.head_dim) == (heads, width, 128)


def test_the_parameters_of_recurrent_models_by_hand() -> None:
    """Four gates read the input and the last output; an LSTM here has one bias for each, PyTorch has two."""
    vocab = 10_000
    assert count_parameters("rnn/mikolov") == 2 * vocab * 300 + 300**2
    assert count_parameters("rnn/zaremba_large") == 2 * vocab * 1500 + vocab + 2 * 4 * 1500 * (2 * 1500 + 1)
    layers = [(400, 1150), (1150, 1150), (1150, 400)]
    lstm = sum(4 * cells * (width + cells + 1) for width, cells in layers)
    assert count_parameters("rnn/awd_lstm") == vocab * 400 + vocab + lstm


@pytest.mark.parametrize("size", [(4096, 16, 32, "8b"), (8192, 32, 64, "62b"), (18432, 48, 118, "540b")])
def test_the_parameters_of_palm_by_hand(size: tuple[int, int, int, str]) -> None:
    """Queries and output of all heads, one key and one value, three matrices to 4·width, one norm of scales."""
    width, heads, layers, name = size
    attention = 2 * width * heads * 256 + 2 * width * 256
    layer = attention + 3 * width * 4 * width + width
    assert count_parameters(f"palm/{name}") == 256_000 * width + layers * layer + width


@pytest.mark.parametrize(("name", "layers", "width"), [("417m", 12, 1536), ("280b", 80, 16384)])
def test_the_parameters_of_gopher_by_hand(name: str, layers: int, width: int) -> None:
    """Five square matrices a layer, that of the distances among them, the two of the feed-forward, and vectors."""
    matrices = 13 * width**2
    # Biases: four of attention, 4·width and width of the feed-forward, two of the distances; two norms of scales.
    vectors = (4 + 5 + 2 + 2) * width
    assert count_parameters(f"gopher/{name}") == 32_000 * width + layers * (matrices + vectors) + width


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_the_parameters_of_ettin_17m_by_hand(kind: str) -> None:
    """Seven layers of width 256 and feed-forward 384, the first without a norm; an output layer of the width."""
    layer = 4 * 256**2 + 3 * 256 * 384 + 2 * 256
    output = 256**2 + 256 + 50_368
    assert count_parameters(f"ettin/{kind}_17m") == 50_368 * 256 + 7 * layer - 256 + 2 * 256 + output


def test_the_parameters_of_neobert_by_hand() -> None:
    layer = 4 * 768**2 + 3 * 768 * 2048 + 2 * 768
    assert count_parameters("neobert/250m") == 2 * 30_522 * 768 + 30_522 + 28 * layer + 768


def test_the_parameters_of_transformer_xl_by_hand() -> None:
    """Five square matrices a layer, that of the distances among them, and two biases of each head for all layers."""
    vocab = 259
    for name, layers, width, mlp in (("enwik8_12l", 12, 512, 2048), ("enwik8_24l", 24, 1024, 3072)):
        feed_forward = 2 * width * mlp + mlp + width
        norms = 4 * width
        expected = vocab * width + vocab + 2 * width + layers * (5 * width**2 + feed_forward + norms)
        assert count_parameters(f"transformer_xl/{name}") == expected


def test_the_parameters_of_xlnet_by_hand() -> None:
    """Five square matrices a layer, three biases of each head and two vectors of segments; a vector for the queries."""
    vocab = 32_000
    for name, layers, width, expected in (("base", 12, 768, 116_750_336), ("large", 24, 1024, 360_300_800)):
        feed_forward = 2 * width * 4 * width + 5 * width
        layer = 5 * width**2 + 5 * width + feed_forward + 4 * width
        assert vocab * width + vocab + width + layers * layer == expected
        assert count_parameters(f"xlnet/{name}") == expected


def test_the_parameters_of_griffin_by_hand() -> None:
    """Two of three layers have a branch, an input and an output of 2560 channels, and gates of 16 blocks."""
    width, recurrent, heads = 2048, 2560, 16
    gates = 2 * (recurrent * recurrent // heads + recurrent)
    recurrence = 3 * width * recurrent + gates + recurrent + 5 * recurrent
    attention = 2 * width * width + 2 * width * width // heads
    layers = 24 * (3 * width * 3 * width + 2 * width) + 16 * recurrence + 8 * attention
    assert count_parameters("griffin/1.3b") == 32_000 * width + layers + width


def test_the_parameters_of_mamba2_by_hand() -> None:
    """A layer maps to gates, values, B, C and a step for each head, and filters values, B and C over four tokens."""
    width, states, heads = 768, 128, 24
    filtered = 2 * width + 2 * states
    into = width * (2 * width + filtered + heads)
    layer = into + 5 * filtered + 3 * heads + 2 * width + 2 * width * width + width
    # 128,989,632 in the released checkpoint, by Mamba2ForCausalLM of Transformers.
    assert count_parameters("mamba2/130m") == 128_989_632
    assert count_parameters("mamba2/130m") == 50_288 * width + 24 * layer + width


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("t5gemma/")])
def test_t5gemma_has_the_released_parameters_exactly(name: str) -> None:
    """Two token tables; a layer of the decoder has the encoder's, a second attention and two more norms."""
    model = load_model(name)
    width = model.embed
    attention = 2 * width * model.head_dim * (model.heads + model.kv_heads)
    encoder_layer = attention + 3 * width * model.mlp + 4 * width
    layers = model.layers * (2 * encoder_layer + attention + 2 * width)
    by_hand = 2 * 256_000 * width + layers + 2 * width
    assert count_parameters(name) == by_hand == PUBLISHED[name]


def test_the_parameters_of_gated_deltanet_by_hand() -> None:
    """Two maps to 0.75 and three of 1.5 times the width, six squares in all; a decay and a strength for each head."""
    width, heads, layers = 2400, 9, 16
    keys = width * 3 // 4
    values = 2 * keys
    assert 2 * width * keys + 3 * width * values == 6 * width**2
    mixer = 6 * width**2 + 2 * width * heads + 4 * (2 * keys + values) + 2 * heads + values // heads
    layer = mixer + 3 * width * 5888 + 2 * width
    assert count_parameters("gated_deltanet/1.3b") == 32_000 * width + layers * layer + width


@pytest.mark.parametrize(("name", "cells", "width", "highways"), [("original", 4096, 512, 2), ("small", 1024, 128, 1)])
def test_the_parameters_of_elmo_by_hand(name: str, cells: int, width: int, highways: int) -> None:
    """Peters et al. 2018, §3.4: 2048 filters over characters of 16 channels, and four LSTMs with a projection each."""
    filters = [32, 32, 64, 128, 256, 512, 1024]
    characters = 261 * 16 + sum(16 * taps * count + count for taps, count in enumerate(filters, start=1))
    total = sum(filters)
    embedding = characters + highways * 2 * total * (total + 1) + (total + 1) * width
    lstm = 4 * cells * (2 * width + 1) + cells * width
    assert count_parameters(f"elmo/{name}") == embedding + 4 * lstm
    softmax = 793_471 * (width + 1)
    assert model_spec(load_model(f"elmo/{name}")).parameters == embedding + 4 * lstm + softmax
