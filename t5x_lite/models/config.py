"""A whole model: its sizes, its components, and what must hold between them.

A config is data: JAX is not imported, so that it is checked before any device is touched.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, SerializerFunctionWrapHandler, Strict, model_serializer, model_validator

from t5x_lite.models.attention.kinds import ATTENTION, AttentionKind, kinds_of_layers
from t5x_lite.models.character_config import CharacterCNN
from t5x_lite.models.derived_sizes import derived_sizes, whole_number
from t5x_lite.models.experts.config import MoE
from t5x_lite.models.family_problems import family_problems
from t5x_lite.models.feedforward.config import GLU, MLP, DenseFeedForward, NoFeedForward
from t5x_lite.models.generator_config import GeneratorConfig
from t5x_lite.models.head_config import HeadConfig
from t5x_lite.models.initializers import INITIALIZERS, Initializer, MaximalUpdate, NormalInit
from t5x_lite.models.layer_config import FEEDFORWARDS, LayerConfig
from t5x_lite.models.layer_problems import layer_problems
from t5x_lite.models.mixers import MIXERS, Mixer, StateMixer
from t5x_lite.models.normalization import NORMS, LayerNorm, NoNorm, RMSNorm
from t5x_lite.models.output_problems import output_problems
from t5x_lite.models.positions import POSITIONS, Learned, PositionEncoding
from t5x_lite.models.remat_policy import REMAT_DESCRIPTION, RematPolicy
from t5x_lite.schema import Config, Int, OneOf, setting

SPAN_POSITIONS = 20
"""Positions inside a span that the span output distinguishes (Joshi et al. 2020, code: max_pair_targets)."""

DECODER_SETTINGS = (
    *("decoder_layers", "decoder_attention", "decoder_embedding", "decoder_mixer"),
    *("start_token", "shared_stacks"),
)
"""Settings of an encoder_decoder that an encoder does not have."""
LONGEST_PERIOD = 512
"""Layers of the longest pattern: each of them is compiled on its own."""

Family = Literal["decoder", "encoder", "encoder_decoder", "electra"]
ENCODERS: tuple[Family, ...] = ("encoder", "electra")
"""Families without a decoder."""
Output = Literal["tokens", "neighbours", "sentence", "detection", "span"]


class ModelConfig(Config):
    """A Transformer as a composition of components. Sizes are the field's: embed, heads, head_dim, mlp, vocab.

    Sizes that follow from others (`kv_heads`, `head_dim`, `mlp`, `embedding`, `decoder_layers`) are numbers in a
    checked config, whether they were given or not.
    """

    family: Family = setting("decoder", "which Transformer: GPT, BERT, T5, or ELECTRA's pair of encoders")
    layers: Int = setting(..., "number of layers (of each stack in an encoder_decoder)", ge=1)
    decoder_layers: Int = setting(None, "layers of an encoder_decoder's decoder; null takes `layers`", ge=1)
    embed: Int = setting(..., "width of the residual stream", ge=1)
    heads: Int = setting(..., "number of query heads", ge=1)
    kv_heads: Int = setting(
        None, "number of key and value heads; null takes `heads`", ge=1, source="Ainslie et al. 2023"
    )
    head_dim: Int = setting(None, "width of a head; null takes embed / heads", ge=1)
    mlp: Int = setting(None, "width of the feed-forward; null takes 4·embed", ge=1)
    vocab: Int | None = setting(None, "rows of the embedding; null takes the tokenizer's size", ge=1)
    embedding: Int = setting(
        None, "width of the token embedding, projected to `embed`; null takes `embed`", ge=1, source="ALBERT, §3.1"
    )
    embedding_projection: Literal["sum", "tokens"] = setting(
        "sum", "project the sum of embeddings (ALBERT); or that of tokens, without a bias, and states back (OPT-350M)"
    )
    token_copies: Int = setting(1, "copies of the token vector side by side: 2 for separate_directions", ge=1)
    characters: CharacterCNN | None = setting(None, "token vectors from the characters of tokens; null: a table")
    start_token: Int = setting(
        0, "token that an encoder_decoder's decoder begins with: T5's padding; BART's is </s>", ge=0
    )
    token_types: Int = setting(0, "kinds of token (first or second sentence) with a vector each", ge=0, source="BERT")
    query_stream: bool = setting(False, "a trained vector in the place of predicted tokens", source="XLNet, §2.3")
    embedding_norm: bool = setting(False, "normalise the sum of the embeddings", source="BERT's code")
    positions: Annotated[PositionEncoding, OneOf(POSITIONS)] = setting(Learned(), "how a token knows its position")
    norm: Annotated[LayerNorm | RMSNorm | NoNorm, OneOf(NORMS)] = setting(
        LayerNorm(), "normalisation of the residual stream"
    )
    norm_place: Literal["pre", "post", "sublayer", "sandwich"] = setting(
        "pre",
        "before each sublayer; after each residual addition (BERT); on each sublayer's output (OLMo 2); or both before "
        "a sublayer and on its output (sandwich, Gemma 2)",
    )
    sublayers: Literal["sequential", "parallel", "parallel_shared_norm"] = setting(
        "sequential",
        "mixer and feed-forward after each other; or side by side on the same input, with a norm each or one for both",
        source="GPT-J; GPT-NeoX: Black et al. 2022, §2.1; Falcon",
    )
    residual: bool = setting(True, "add the input of each sublayer to its output; false is for norm_place: pre")
    query_key_norm: Literal["none", "head", "width"] = setting(
        "none", "normalise queries and keys per head, or over all heads at once", source="Dehghani 2023, §2; OLMo 2"
    )
    attention_scale: float | None = setting(
        None, "factor on scores; null is 1/sqrt(head_dim), T5 and GPT-Neo have 1", gt=0
    )
    attention_softcap: float | None = setting(
        None, "scores become cap·tanh(scores / cap) before the softmax", gt=0, source="Gemma 2, §2"
    )
    attention_sinks: bool = setting(
        False, "a trained score of each head that takes weight from all keys and adds nothing", source="gpt-oss, §2.2"
    )
    attention_output_gate: bool = setting(
        False, "multiply what each head returns by a sigmoid of the layer's input", source="Qiu et al. 2025; Qwen3-Next"
    )
    feedforward: Annotated[MLP | GLU | MoE | NoFeedForward, OneOf(FEEDFORWARDS)] = setting(
        MLP(), "the position-wise sublayer"
    )
    pattern: Annotated[tuple[LayerConfig, ...], Strict(False)] = setting(
        (LayerConfig(),), "layers that repeat until there are `layers`; the last repeat may be cut short", min_length=1
    )
    decoder_attention: Annotated[
        tuple[Annotated[AttentionKind, OneOf(ATTENTION)], ...], Strict(False), BeforeValidator(kinds_of_layers)
    ] = setting(
        (),
        "attention of an encoder_decoder's decoder, for each layer of the pattern or one for all; none: as the pattern "
        "says",
        source="LongT5: Guo 2022, §3; T5Gemma",
    )
    decoder_embedding: Literal["shared", "separate"] = setting(
        "shared", "an encoder_decoder's decoder has the encoder's token table, or its own", source="T5Gemma's code"
    )
    decoder_mixer: Annotated[Mixer | None, OneOf(MIXERS)] = setting(
        None, "mixer of an encoder_decoder's decoder, such as lstm after a bidirectional one; null: as the pattern says"
    )
    first: Annotated[tuple[LayerConfig, ...], Strict(False)] = setting(
        (), "layers before those of the pattern, without experts; `layers` counts them", source="DeepSeekMoE, §5.1.2"
    )
    shared_layers: bool = setting(False, "one period's weights serve all repeats of a group", source="ALBERT, §3.1")
    shared_groups: Int = setting(
        1, "equal parts of the layers, each of which shares weights of its own", ge=1, source="ALBERT's code"
    )
    shared_stacks: bool = setting(
        False, "encoder and decoder share all but cross-attention", source="Raffel et al. 2020, §3.2.3"
    )
    bias: bool = setting(True, "biases in the linear layers")
    query_key_value_bias: bool | None = setting(None, "biases of these three; null takes `bias`")
    key_bias: bool | None = setting(None, "bias of keys; null takes `query_key_value_bias`", source="DeBERTa: false")
    feedforward_bias: bool | None = setting(None, "biases of feed-forward layers and experts; null takes `bias`")
    prefix_lm: bool = setting(
        False, "a decoder's inputs attend to each other both ways, its targets back only", source="Raffel 2020, §3.2.1"
    )
    outputs: Annotated[tuple[Output, ...], Strict(False)] = setting(
        ("tokens",),
        "predictions: tokens; neighbours (next and previous token, ELMo); sentence (a pair's relation, BERT); "
        "detection (replaced or not, ELECTRA); span (tokens from a span's borders, SpanBERT); none beside a head",
    )
    output_transform: bool = setting(False, "a dense layer and a norm before the token logits", source="BERT's code")
    output_bias: bool = setting(False, "a bias per token of the vocabulary")
    detection_context: bool = setting(False, "detect by states plus the first one, normalised", source="DeBERTa-v3")
    generator: GeneratorConfig | None = setting(None, "the smaller model of `electra`")
    head: HeadConfig | None = setting(None, "what a task predicts; the task's objective gives it")
    tied: bool = setting(True, "the output matrix is the token embedding", source="Press & Wolf 2017")
    scale_embedding: bool = setting(
        False, "multiply the token embedding by sqrt(embed)", source="Vaswani et al. 2017, §3.4"
    )
    bfloat16_embedding_scale: bool = setting(
        False, "round that root to bfloat16 even in float32", source="RecurrentGemma's code"
    )
    scale_output: bool = setting(False, "divide states by sqrt(embed) before the token logits", source="T5's code")
    logit_softcap: float | None = setting(None, "logits become cap·tanh(logits / cap)", gt=0)
    dropout: float = setting(0.0, "share of activations zeroed in training", ge=0, lt=1)
    attention_dropout: float | None = setting(
        None, "share of attention weights zeroed in training; null: that of `dropout`", ge=0, lt=1
    )
    variational_dropout: bool = setting(
        False, "zero the same channels of the residual stream at all tokens of a row", source="Gal & Ghahramani 2016"
    )
    embedding_dropout: float = setting(
        0.0, "share of the vocabulary whose embeddings are zeroed in a step", ge=0, lt=1, source="Merity 2018, §4.3"
    )
    init: Annotated[Initializer, OneOf(INITIALIZERS)] = setting(NormalInit(), "initialisation of weights")
    mup: MaximalUpdate | None = setting(None, "maximal-update parametrisation, for optimizer.method=adamw")
    kernel: Literal["auto", "xla", "cudnn", "splash", "flash"] = setting(
        "auto", "what computes attention; `auto` is the fastest that can: cudnn, splash, then flash, else xla"
    )
    compute: Literal["float32", "bfloat16"] = setting(
        "float32", "type of activations (of parameters: train.param_dtype)"
    )
    remat: RematPolicy = setting("none", REMAT_DESCRIPTION)
    pipeline_microbatches: Int | None = setting(
        None, "parts of a batch that follow each other through mesh.pipeline; null: up to 4 a stage", ge=1
    )
    unroll: Int = setting(1, "repeats of the pattern unrolled in one step of the scan over layers; 0 is all", ge=0)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_sizes(cls, values: Any) -> Any:
        """Fill in the sizes that follow from others."""
        if not isinstance(values, Mapping):
            return values
        sizes = dict(values)
        layers, embed, heads = (whole_number(sizes.get(name)) for name in ("layers", "embed", "heads"))
        if embed is not None and heads and embed % heads and sizes.get("head_dim") is None:
            raise ValueError(f"embed {embed} is not a multiple of heads {heads}; change one of them or give `head_dim`")
        if sizes.get("decoder_layers") is not None and sizes.get("family") != "encoder_decoder":
            raise ValueError("decoder_layers is for encoder_decoder")
        for name, size in derived_sizes(layers, embed, heads).items():
            if sizes.get(name) is None:
                sizes[name] = size
        return sizes

    @model_serializer(mode="wrap")
    def _leave_out_derived_sizes(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write null for sizes that follow from others, so that overrides of the others change them too."""
        values = dump(self)
        for name, size in derived_sizes(self.layers, self.embed, self.heads).items():
            if values.get(name) == size:
                values[name] = None
        return values

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the model, and then with ELECTRA's generator alone."""
        problems = list(self._model_problems())
        yield from problems
        if self.family == "electra" and self.generator is not None:
            for problem in self.generator_model.problems():
                if problem not in problems:
                    yield f"generator: {problem}"

    def _model_problems(self) -> Iterator[str]:
        """Yield sizes that do not divide each other, and components that do not go together."""
        if self.heads % self.kv_heads:
            yield f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}"
        yield from self.positions.model_problems(self)
        if self.characters is not None:
            yield from self.characters.model_problems(self)
        for name, depth in (("layers", self.layers), ("decoder_layers", self.decoder_layers)):
            layers = depth - len(self.first)
            if layers % len(self.pattern) and (self.shared_layers or self.layers != self.decoder_layers):
                yield f"{name} {layers} is not a multiple of the pattern's {len(self.pattern)} layers"
        if not self.residual and self.norm_place != "pre":
            yield f"residual: false is for norm_place: pre, not {self.norm_place}"
        if self.sublayers != "sequential" and (self.norm_place != "pre" or not self.residual):
            yield f"sublayers: {self.sublayers} is for norm_place: pre with residual: true"
        if len(self.period) > LONGEST_PERIOD:
            yield f"{len(self.period)} layers without a repeat; patterns of up to {LONGEST_PERIOD} can be compiled"
        yield from layer_problems(self)
        yield from family_problems(self)
        yield from output_problems(self)

    @property
    def is_encoder_only(self) -> bool:
        """True if the model has no decoder, so that it generates no text."""
        return self.family in ENCODERS

    @property
    def predicts_tokens(self) -> bool:
        """True if the model has an output over the vocabulary; of ELECTRA, the generator has it."""
        return self.family == "electra" or "tokens" in self.outputs

    @property
    def gives_vectors(self) -> bool:
        """True if the head's output is the pooled states of a text."""
        return self.head is not None and not self.head.outputs and self.head.pool != "none"

    @property
    def adds_special_tokens(self) -> bool:
        """True if texts are read between the special tokens of a task: in an encoder, and where they get vectors."""
        return self.is_encoder_only or self.gives_vectors

    @property
    def attention_dropout_rate(self) -> float:
        """Share of attention weights zeroed in training."""
        return self.dropout if self.attention_dropout is None else self.attention_dropout

    @property
    def summed_width(self) -> int:
        """Return the width of positions and token types, which are added to the token embedding."""
        return self.embed if self.embedding_projection == "tokens" else self.embedding

    @property
    def max_length(self) -> int | None:
        """Return the longest row that the positions can serve; None: any."""
        layers = (*self.first, *self.pattern)
        encodings = [self.positions, *(layer.positions for layer in layers if layer.positions is not None)]
        limits = [encoding.max_length for encoding in encodings if encoding.max_length is not None]
        return min(limits, default=None)

    @property
    def period(self) -> tuple[LayerConfig, ...]:
        """Return the layers that repeat after the first ones: the pattern, or all of them where it does not divide."""
        layers = self.layers - len(self.first)
        if layers % len(self.pattern) == 0:
            return self.pattern
        repeats = layers // len(self.pattern) + 1
        return (self.pattern * repeats)[:layers]

    def count_repeats(self, layers: int) -> int:
        """Return the repeats of the period in a stack of so many layers."""
        return (layers - len(self.first)) // len(self.period)

    def mean_over_layers(self, number: Callable[[LayerConfig], float]) -> float:
        """Return the mean over all layers of a number that each has."""
        first = sum(number(layer) for layer in self.first)
        of_period = sum(number(layer) for layer in self.period)
        return (first + self.count_repeats(self.layers) * of_period) / self.layers

    @property
    def state_mixers(self) -> tuple[StateMixer, ...]:
        """Return the mixers other than attention of the first layers and of one period."""
        return tuple([layer.mixer for layer in (*self.first, *self.period) if isinstance(layer.mixer, StateMixer)])

    @property
    def mixtures(self) -> tuple[MoE, ...]:
        """Return the Mixture-of-Experts layers of one period."""
        mixtures = []
        for layer in self.period:
            feedforward = self.feedforward_of(layer)
            if isinstance(feedforward, MoE):
                mixtures.append(feedforward)
        return tuple(mixtures)

    def feedforward_of(self, layer: LayerConfig) -> MLP | GLU | MoE | NoFeedForward:
        """Return the feed-forward of a layer of the pattern."""
        if not isinstance(layer.feedforward, DenseFeedForward):
            return layer.feedforward or self.feedforward
        if isinstance(self.feedforward, MoE):
            return self.dense_feedforward
        return self.feedforward

    @property
    def dense_feedforward(self) -> MLP | GLU:
        """Return the feed-forward of a layer without experts, and of an expert that does not name its own.

        Outputs take their activation from it too, so that a model without feed-forwards has the default.
        """
        if isinstance(self.feedforward, MoE):
            return self.feedforward.expert or MLP()
        if isinstance(self.feedforward, NoFeedForward):
            return MLP()
        return self.feedforward

    @property
    def width_multiplier(self) -> float:
        """Return how much wider the model is than µP's base; 1 without µP."""
        if self.mup is None:
            return 1.0
        return self.embed / self.mup.embed

    @property
    def score_scale(self) -> float | None:
        """Return the factor on attention scores; None is 1/sqrt(head_dim)."""
        if self.mup is None or self.attention_scale is not None:
            return self.attention_scale
        base_head_dim = self.mup.head_dim or self.head_dim
        return base_head_dim**0.5 / self.head_dim

    @property
    def decoder_model(self) -> "ModelConfig":
        """Return the config of the decoder's stack: the model with `decoder_attention` and `decoder_mixer`."""
        pattern = self.pattern
        if self.decoder_mixer is not None:
            pattern = tuple([layer.model_copy(update={"mixer": self.decoder_mixer}) for layer in pattern])
        if self.decoder_attention:
            kinds = self.decoder_attention * (len(pattern) // len(self.decoder_attention))
            pairs = zip(pattern, kinds, strict=True)
            pattern = tuple([layer.model_copy(update={"attention": kind}) for layer, kind in pairs])
        if pattern is self.pattern:
            return self
        return self.model_copy(update={"pattern": pattern, "decoder_attention": (), "decoder_mixer": None})

    @property
    def discriminator_model(self) -> "ModelConfig":
        """Return ELECTRA's discriminator as an encoder: the model that is kept after pretraining."""
        return self.model_copy(update={"family": "encoder", "generator": None})

    @property
    def generator_model(self) -> "ModelConfig":
        """Return ELECTRA's generator as an encoder that shares the discriminator's embeddings."""
        assert self.generator is not None
        return self.model_copy(update=self.generator.encoder_settings())
