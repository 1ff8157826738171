"""DistilBERT in Hugging Face's format."""

from t5x_lite.convert.bert import BERT_FIXED, ENCODER_TIED, headless, masked_lm
from t5x_lite.convert.config_table import ACTIVATION, ConfigTable, Field
from t5x_lite.convert.model_type import ModelType
from t5x_lite.convert.weight_map import Modules, StackModules, WeightTable

DISTILBERT_FIELDS = (
    Field("vocab_size", "vocab"),
    Field("dim", "embed"),
    Field("n_layers", "layers"),
    Field("n_heads", "heads"),
    Field("hidden_dim", "mlp"),
    Field("activation", "feedforward.mlp.activation", default="gelu", transform=ACTIVATION),
    Field("dropout", "dropout", default=0.1),
    Field("attention_dropout", "dropout", is_read=False),
    Field("max_position_embeddings", "positions.learned.length", default=512),
)
NOT_READ = (
    "sinusoidal_pos_embds",  # initial values of the table of positions
    "qa_dropout",
    "seq_classif_dropout",
    "tie_weights_",
)
DISTILBERT_LAYER: Modules = {
    "attention.q_lin": "attention.query",
    "attention.k_lin": "attention.key",
    "attention.v_lin": "attention.value",
    "attention.out_lin": "attention.out",
    "sa_layer_norm": "attention_norm",
    "ffn.lin1": "feedforward.up",
    "ffn.lin2": "feedforward.down",
    "output_layer_norm": "feedforward_norm",
}
DISTILBERT_WEIGHTS = WeightTable(
    modules={
        "distilbert.embeddings.word_embeddings": "tokens",
        "distilbert.embeddings.position_embeddings": "encoder.embedding.positions.table",
        "distilbert.embeddings.LayerNorm": "encoder.embedding.norm",
        "vocab_projector": "output",
        "vocab_transform": "output.transform",
        "vocab_layer_norm": "output.norm",
    },
    stacks=(StackModules("distilbert.transformer.layer.{layer}", "encoder.stack.layers", DISTILBERT_LAYER),),
)

DISTILBERT = ModelType(
    name="distilbert",
    architectures=(masked_lm("DistilBertForMaskedLM"),),
    headless=headless("DistilBertModel"),
    config=ConfigTable(
        DISTILBERT_FIELDS,
        {**BERT_FIXED, "norm.layernorm.epsilon": 1e-12},
        without_effect=(*ENCODER_TIED, *NOT_READ),
    ),
    weights=DISTILBERT_WEIGHTS,
    tokenizer_class="BertTokenizer",
    base_model_prefix="distilbert.",
    copies={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
)
"""Sanh et al. 2019: half of BERT's layers, without token types and pooler."""
