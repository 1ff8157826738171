"""A whole model: its sizes, its components, and what must hold between them.

Pure data: no JAX here, so that a config is checked before any device is touched.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Strict

from t5x_lite.models.attention.kinds import AttentionKind, BlockGlobal, Factorised, Fixed
from t5x_lite.models.components import (
    FEEDFORWARDS,
    GLU,
    INITIALIZERS,
    MLP,
    NORMS,
    POSITIONS,
    ALiBi,
    DenseFeedForward,
    FanInInit,
    LayerConfig,
    LayerNorm,
    Learned,
    MaximalUpdate,
    MoE,
    NoPositions,
    NormalInit,
    Relative,
    RMSNorm,
    Rotary,
    Sinusoidal,
)
from t5x_lite.models.experts.config import Dropless, ExpertChoice
from t5x_lite.schema import Config, Int, OneOf, setting

START = 0
"""The token that an encoder_decoder's decoder begins from: T5's padding id."""
SPAN_POSITIONS = 20
"""Places inside a span that the span output tells apart (Joshi et al. 2020, code: max_pair_targets)."""

RematPolicy = Literal["none", "full", "dots", "dots_no_batch", "offload"]


class GeneratorConfig(Config):
    """ELECTRA's small masked language model; what it does not say is as in the discriminator (Clark et al. 2020)."""

    layers: Int = setting(..., "number of layers", ge=1)
    embed: Int = setting(..., "width of the residual stream", ge=1)
    heads: Int = setting(..., "number of query heads", ge=1)
    mlp: Int | None = setting(None, "width of the feed-forward; null takes 4·embed", ge=1)


class HeadConfig(Config):
    """What a task predicts from the states; the objective of a task says which it needs."""

    outputs: Int = setting(..., "scores of each text, or of each token; 0 is none: the pooled states serve", ge=0)
    pool: Literal["first", "last", "mean", "max", "none"] = setting("first", "a text's states as one; none: each token")
    transform: bool = setting(False, "a dense tanh layer before the scores (BERT's pooler)")
    parts: Int = setting(1, "pooled states that are scored side by side", ge=1)


Family = Literal["decoder", "encoder", "encoder_decoder", "electra"]
Output = Literal["tokens", "sentence", "detection", "span"]


class ModelConfig(Config):
    """A Transformer as a composition of components. Sizes are the field's: embed, heads, head_dim, mlp, vocab."""

    family: Family = setting("decoder", "which Transformer: GPT, BERT, T5, or ELECTRA's pair of encoders")
    layers: Int = setting(..., "number of layers (of each stack in an encoder_decoder)", ge=1)
    decoder_layers: Int | None = setting(None, "layers of an encoder_decoder's decoder; null takes `layers`", ge=1)
    embed: Int = setting(..., "width of the residual stream", ge=1)
    heads: Int = setting(..., "number of query heads", ge=1)
    kv_heads: Int | None = setting(
        None, "number of key and value heads; null takes `heads`", ge=1, source="Ainslie et al. 2023"
    )
    head_dim: Int | None = setting(None, "width of a head; null takes embed / heads", ge=1)
    mlp: Int | None = setting(None, "width of the feed-forward; null takes 4·embed", ge=1)
    vocab: Int | None = setting(None, "rows of the embedding; null takes the tokenizer's size", ge=1)
    embedding: Int | None = setting(
        None, "width of the token embedding, projected to `embed`; null takes `embed`", ge=1, source="ALBERT, §3.1"
    )
    token_types: Int = setting(0, "kinds of token (first or second sentence) with a vector each", ge=0, source="BERT")
    embedding_norm: bool = setting(False, "normalise the sum of the embeddings", source="BERT's code")
    positions: Annotated[Learned | Rotary | Sinusoidal | Relative | ALiBi | NoPositions, OneOf(POSITIONS)] = setting(
        Learned(), "how a token knows its place"
    )
    norm: Annotated[LayerNorm | RMSNorm, OneOf(NORMS)] = setting(LayerNorm(), "normalisation of the residual stream")
    norm_place: Literal["pre", "post", "sublayer"] = setting(
        "pre", "before each sublayer; after each residual addition (BERT); or on each sublayer's output (OLMo 2)"
    )
    query_key_norm: Literal["none", "head", "width"] = setting(
        "none", "normalise queries and keys per head, or over all heads at once", source="Dehghani 2023, §2; OLMo 2"
    )
    attention_scale: float | None = setting(
        None, "factor on scores; null is 1/sqrt(head_dim), T5 and GPT-Neo have 1", gt=0
    )
    feedforward: Annotated[MLP | GLU | MoE, OneOf(FEEDFORWARDS)] = setting(MLP(), "the position-wise sublayer")
    pattern: Annotated[tuple[LayerConfig, ...], Strict(False)] = setting(
        (LayerConfig(),), "layers of one period; repeated until `layers` are there", min_length=1
    )
    shared_layers: bool = setting(False, "one period's weights serve all repeats", source="ALBERT, §3.1")
    shared_stacks: bool = setting(
        False, "encoder and decoder share all but cross-attention", source="Raffel et al. 2020, §3.2.3"
    )
    bias: bool = setting(True, "biases in the linear layers")
    query_key_value_bias: bool | None = setting(None, "biases of these three; null takes `bias`")
    prefix_lm: bool = setting(
        False, "a decoder's inputs see each other both ways, its targets only back", source="Raffel 2020, §3.2.1"
    )
    outputs: Annotated[tuple[Output, ...], Strict(False)] = setting(
        ("tokens",),
        "what is predicted: tokens; sentence (a pair's relation, BERT); detection (replaced or not, ELECTRA); "
        "span (tokens from a span's borders, SpanBERT); none beside a head",
    )
    output_transform: bool = setting(False, "a dense layer and a norm before the token logits", source="BERT's code")
    output_bias: bool = setting(False, "a bias per token of the vocabulary")
    generator: GeneratorConfig | None = setting(None, "the smaller model of `electra`")
    head: HeadConfig | None = setting(None, "what a task predicts; the task's objective gives it")
    tied: bool = setting(True, "the output matrix is the token embedding", source="Press & Wolf 2017")
    scale_embedding: bool = setting(
        False, "multiply the token embedding by sqrt(embed)", source="Vaswani et al. 2017, §3.4"
    )
    scale_output: bool = setting(False, "divide states by sqrt(embed) before the token logits", source="T5's code")
    logit_softcap: float | None = setting(None, "logits become cap·tanh(logits / cap)", gt=0)
    dropout: float = setting(0.0, "share of activations zeroed in training", ge=0, lt=1)
    init: Annotated[NormalInit | FanInInit, OneOf(INITIALIZERS)] = setting(NormalInit(), "initialisation of weights")
    mup: MaximalUpdate | None = setting(None, "maximal-update parametrisation, for optimizer.method=adamw")
    kernel: Literal["auto", "xla", "cudnn", "splash", "flash"] = setting(
        "auto", "what computes attention; `auto` is the fastest that can: cudnn, splash, then flash, else xla"
    )
    compute: Literal["float32", "bfloat16"] = setting("float32", "type of activations; parameters stay float32")
    remat: RematPolicy = setting(
        "none",
        "what the backward pass computes anew instead of keeping: all of a layer (full), all but products (dots), all "
        "but products with weights (dots_no_batch), all, with what passes between layers kept in host memory (offload)",
    )
    pipeline_microbatches: Int | None = setting(
        None, "parts of a batch that follow each other through mesh.pipeline; null: up to 4 a stage", ge=1
    )
    unroll: Int = setting(1, "repeats of the pattern unrolled in one step of the scan over layers; 0 is all", ge=0)

    def problems(self) -> Iterator[str]:
        """Sizes that do not divide each other, and parts that do not go together."""
        if self.head_dim is None and self.embed % self.heads:
            yield f"embed {self.embed} is not a multiple of heads {self.heads}; change one of them or give `head_dim`"
        if self.kv_heads and self.heads % self.kv_heads:
            yield f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}"
        if isinstance(self.positions, Rotary) and self.width_of_head % 2:
            yield f"rotary positions need an even head_dim, found {self.width_of_head}"
        for name, layers in (("layers", self.layers), ("decoder_layers", self.layers_of_decoder)):
            if layers % len(self.pattern):
                yield f"{name} {layers} is not a multiple of the pattern's {len(self.pattern)} layers"
        for layer in self.pattern:
            yield from self._faults_of_attention(layer.attention)
        encoder = self.family in {"encoder", "electra"}
        if len({moe.experts for moe in self.mixtures}) > 1:
            yield "layers of different numbers of experts cannot be measured together; give all the same"
        if not encoder and any(isinstance(moe.router, ExpertChoice) for moe in self.mixtures):
            yield "router expert_choice is for encoders: an expert's choice depends on later tokens"
        yield from self._faults_of_family(encoder)

    def _faults_of_attention(self, kind: AttentionKind) -> Iterator[str]:
        if isinstance(kind, Factorised) and kind.share == "heads" and (self.heads % 2 or self.key_value_heads % 2):
            yield (
                f"attention with share=heads gives half of the heads to each set: heads {self.heads} and kv_heads "
                f"{self.key_value_heads} must be even; or take share=near and share=far in two layers, or share=both"
            )
        if isinstance(kind, Fixed) and kind.summary > kind.stride:
            yield f"attention fixed: summary {kind.summary} is more than its stride {kind.stride}"
        if isinstance(kind, BlockGlobal) and self.family in {"decoder", "encoder_decoder"}:
            yield "attention block_global is for encoders: its global tokens look at all that follows"

    def _faults_of_family(self, encoder: bool) -> Iterator[str]:
        if self.family != "encoder_decoder":
            for name in ("decoder_layers", "shared_stacks"):
                if getattr(self, name):
                    yield f"{name} is for encoder_decoder"
        elif self.shared_stacks and self.layers != self.layers_of_decoder:
            yield "shared_stacks needs equal stacks"
        tokens_alone = set(self.outputs) == {"tokens"}
        if self.mup is not None and (self.mixtures or self.embedding or not tokens_alone):
            yield "mup is for models without experts, of one width, that predict tokens"
        if self.head is not None and self.family not in {"encoder", "decoder"}:
            yield (
                f"a head is for an encoder or a decoder, not a model of family {self.family}; train an encoder_decoder "
                "on a task's text form, and of electra its discriminator (family: encoder)"
            )
        if not self.outputs and self.head is None:
            yield "outputs: [] leaves nothing to predict; give some, or a head"
        if self.prefix_lm and self.family != "decoder":
            yield "prefix_lm is for a decoder"
        if (self.generator is not None) != (self.family == "electra"):
            yield "electra, and it alone, has a `generator`"
        if not encoder and not tokens_alone:
            yield f"outputs of a {self.family} are [tokens]"
        if self.family == "electra" and self.outputs != ("detection",):
            yield "outputs of electra's discriminator are [detection]"
        if self.embedding not in {None, self.embed} and not self.output_transform and "tokens" in self.outputs:
            yield "`embedding` narrower than `embed` needs output_transform"

    def check_mesh(self, expert: int, tensor: int, pipeline: int) -> None:
        """Refuse sizes of the mesh axes that these layers and experts cannot be sharded over, with a ValueError."""
        depths = {"layers": self.layers, "decoder_layers": self.layers_of_decoder}
        if self.generator is not None:
            depths["generator.layers"] = self.generator.layers
        for name, layers in depths.items() if pipeline > 1 else ():
            repeats = layers // len(self.pattern)
            if repeats % pipeline or self.shared_layers:
                what = "one layer for all" if self.shared_layers else f"{repeats} repeats of the pattern"
                raise ValueError(
                    f"mesh.pipeline {pipeline} cannot cut model.{name} {layers}, {what}, into equal stages"
                )
        if expert > 1 and not self.mixtures:
            raise ValueError(f"mesh.expert {expert}: this model has no experts to shard; leave it 1")
        for moe in self.mixtures:
            if moe.experts % expert:
                raise ValueError(f"mesh.expert {expert} does not divide the {moe.experts} experts of a layer")
            kernel = moe.dispatch.kernel if isinstance(moe.dispatch, Dropless) else ""
            if kernel in {"auto", "buffer"} and pipeline > 1:
                raise ValueError(
                    f"mesh.pipeline {pipeline}: stages run together, so all would do the rounds of "
                    "dropless.kernel=buffer that one of them needs; take dispatch=capacity, or kernel=megablox on TPUs"
                )
            if kernel in {"ragged", "megablox"} and expert * tensor > 1:
                raise ValueError(
                    f"dropless.kernel={kernel} multiplies whole experts: it needs mesh.expert=1 and mesh.tensor=1; "
                    "kernel=buffer does not"
                )

    @property
    def mixtures(self) -> tuple[MoE, ...]:
        """The Mixture-of-Experts layers of one period."""
        return tuple(kind for layer in self.pattern if isinstance(kind := self.feedforward_of(layer), MoE))

    def feedforward_of(self, layer: LayerConfig) -> MLP | GLU | MoE:
        """What a layer of the pattern has."""
        own = layer.feedforward
        return self.dense_feedforward if isinstance(own, DenseFeedForward) else own or self.feedforward

    @property
    def dense_feedforward(self) -> MLP | GLU:
        """What a layer without experts has, and an expert that does not say what it is."""
        own = self.feedforward
        return own if not isinstance(own, MoE) else own.expert or MLP()

    @property
    def width_of_head(self) -> int:
        """Channels of one head."""
        return self.head_dim or self.embed // self.heads

    @property
    def times_base(self) -> float:
        """How much wider than µP's base the model is; 1 without it."""
        return self.embed / self.mup.embed if self.mup else 1.0

    @property
    def scale_of_scores(self) -> float | None:
        """The factor on attention scores; None for 1/sqrt(head_dim)."""
        if self.mup is None or self.attention_scale is not None:
            return self.attention_scale
        return (self.mup.head_dim or self.width_of_head) ** 0.5 / self.width_of_head

    @property
    def key_value_heads(self) -> int:
        """Heads that have keys and values of their own."""
        return self.kv_heads or self.heads

    @property
    def width_of_mlp(self) -> int:
        """Channels inside the feed-forward."""
        return self.mlp or 4 * self.embed

    @property
    def width_of_embedding(self) -> int:
        """Channels of the token embedding."""
        return self.embedding or self.embed

    @property
    def layers_of_decoder(self) -> int:
        """Layers of the stack that makes the targets."""
        return self.decoder_layers or self.layers

    @property
    def model_of_discriminator(self) -> "ModelConfig":
        """ELECTRA's discriminator as an encoder: what is kept after pre-training."""
        return self.model_copy(update={"family": "encoder", "generator": None})

    @property
    def model_of_generator(self) -> "ModelConfig":
        """ELECTRA's generator as an encoder that shares the discriminator's embeddings."""
        assert self.generator is not None
        sizes = self.generator.model_dump() | {"head_dim": None, "embedding": self.width_of_embedding}
        other = {"family": "encoder", "outputs": ("tokens",), "output_transform": True, "generator": None}
        return self.model_copy(update=sizes | other | {"output_bias": True})
