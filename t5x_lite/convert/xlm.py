"""XLM in Hugging Face's format: an encoder with a token type for each language."""

from t5x_lite.convert.bert import BERT_FIXED, ENCODER_TIED
from t5x_lite.convert.config_table import ConfigTable, Field, ForeignConfig, ForeignModel, Rule, Settings, Transform
from t5x_lite.convert.model_type import HEAD_PREFIXES, NO_TOKEN_OUTPUT, Architecture, ModelType
from t5x_lite.convert.weight_map import Modules, StackModules, WeightTable
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig

# Config.


def _read_gelu(is_gelu: bool) -> str:
    return "gelu" if is_gelu else "relu"


def _write_gelu(activation: str) -> bool:
    return activation == "gelu"


def _read_vocab(source: ForeignModel, settings: Settings) -> None:
    """Read the size of the vocabulary, which older files name `n_words`."""
    sizes = {source.config[name] for name in ("vocab_size", "n_words") if name in source.config}
    if len(sizes) != 1:
        raise UserError(f"vocab_size and n_words name one number, found {len(sizes)}")
    settings["vocab"] = sizes.pop()


def _write_vocab(model: ModelConfig, config: ForeignConfig) -> None:
    config["vocab_size"] = model.vocab


def _read_languages(source: ForeignModel, settings: Settings) -> None:
    """Read the number of languages. A model of one language, or one that is not told the language, has no table."""
    languages = source.config.get("n_langs", 1)
    has_table = languages > 1 and source.config.get("use_lang_emb", True)
    settings["token_types"] = languages if has_table else 0


def _write_languages(model: ModelConfig, config: ForeignConfig) -> None:
    config["n_langs"] = max(model.token_types, 1)
    config["use_lang_emb"] = True


XLM_CONFIG = ConfigTable(
    fields=(
        Field("emb_dim", "embed"),
        Field("n_layers", "layers"),
        Field("n_heads", "heads"),
        Field(
            "gelu_activation",
            "feedforward.mlp.activation",
            default=True,
            transform=Transform(_read_gelu, _write_gelu),
            is_flag=True,
        ),
        Field("dropout", "dropout", default=0.1),
        Field("attention_dropout", "dropout", is_read=False),
        Field("max_position_embeddings", "positions.learned.length", default=512),
        Field("layer_norm_eps", "norm.layernorm.epsilon", default=1e-12),
    ),
    fixed=BERT_FIXED,
    rules=(
        Rule(("vocab_size", "n_words"), _read_vocab, _write_vocab),
        Rule(("n_langs", "use_lang_emb"), _read_languages, _write_languages),
    ),
    required_values={"causal": (False, None), "asm": (False, None), "is_encoder": (True, None)},
    without_effect=(
        *ENCODER_TIED,
        *("sinusoidal_embeddings", "embed_init_std", "init_std"),  # first values of weights
        *("bos_index", "eos_index", "pad_index", "unk_index", "mask_index", "mask_token_id"),
        *("lang_id", "lang2id", "id2lang"),
        *("start_n_top", "end_n_top"),
        *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout"),
    ),
)

# Weights.

LAYER: Modules = {
    "attentions.{layer}.q_lin": "attention.query",
    "attentions.{layer}.k_lin": "attention.key",
    "attentions.{layer}.v_lin": "attention.value",
    "attentions.{layer}.out_lin": "attention.out",
    "layer_norm1.{layer}": "attention_norm",
    "ffns.{layer}.lin1": "feedforward.up",
    "ffns.{layer}.lin2": "feedforward.down",
    "layer_norm2.{layer}": "feedforward_norm",
}
XLM_WEIGHTS = WeightTable(
    modules={
        "transformer.embeddings": "tokens",
        "transformer.position_embeddings": "encoder.embedding.positions.table",
        "transformer.lang_embeddings": "encoder.embedding.types",
        "transformer.layer_norm_emb": "encoder.embedding.norm",
        "pred_layer.proj": "output",
    },
    stacks=(StackModules("transformer", "encoder.stack.layers", LAYER),),
)

XLM = ModelType(
    name="xlm",
    architectures=(
        Architecture(
            "XLMWithLMHeadModel",
            objective={"masked": {"sentences": "none"}},
            settings={"output_transform": False, "output_bias": True},
        ),
    ),
    headless=Architecture("XLMModel", objective=None, outputs=(), settings=NO_TOKEN_OUTPUT),
    config=XLM_CONFIG,
    weights=XLM_WEIGHTS,
    tokenizer_class="XLMTokenizer",
    head_prefixes=(*HEAD_PREFIXES, "pred_layer"),
    base_model_prefix="transformer.",
    ignored_tensors=(r"transformer\.position_ids",),
    copies={"pred_layer.proj.weight": "transformer.embeddings.weight"},
)
"""Conneau & Lample 2019: norms after each sublayer, language embeddings, and an output without a dense layer."""
