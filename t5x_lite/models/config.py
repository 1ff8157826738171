"""What a model is made of. Pure data: no JAX here, so that a config is checked before any device is touched."""

from typing import Annotated, Literal

from pydantic import Strict, model_validator

from t5x_lite.models.patterns import ATTENTION, Dense
from t5x_lite.schema import Config, Int, OneOf, setting


class Learned(Config):
    """A trained vector per absolute position, added to the token embedding (Radford et al. 2018)."""

    length: Int = setting(1024, "number of positions that have a vector", unit="tokens", ge=1)


class Rotary(Config):
    """Queries and keys rotated by an angle that grows with position (Su et al. 2021), in the half-split form."""

    theta: float = setting(
        10000.0, "base of the geometric series of wavelengths", gt=0, source="Su et al. 2021, §3.2.2"
    )


class Sinusoidal(Config):
    """Fixed sines and cosines added to the token embedding (Vaswani et al. 2017, §3.5)."""


class NoPositions(Config):
    """No information on position beyond what the causal mask gives."""


POSITIONS: dict[str, type[Config]] = {
    "learned": Learned,
    "rotary": Rotary,
    "sinusoidal": Sinusoidal,
    "none": NoPositions,
}


class LayerNorm(Config):
    """Centred and scaled to unit variance (Ba et al. 2016)."""

    epsilon: float = setting(1e-5, "added to the variance", gt=0)
    bias: bool = setting(True, "add a learned shift after the learned scale")


class RMSNorm(Config):
    """Scaled to unit root mean square, not centred (Zhang & Sennrich 2019)."""

    epsilon: float = setting(1e-6, "added to the mean square", gt=0)


NORMS: dict[str, type[Config]] = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}

Activation = Literal["gelu", "gelu_tanh", "relu", "silu", "relu_squared"]


class MLP(Config):
    """Two matrices with an activation between them (Vaswani et al. 2017, §3.3)."""

    activation: Activation = setting("gelu_tanh", "elementwise function; `gelu` is the exact one, by erf")


class GLU(Config):
    """Two input matrices, one of them gated by the activation (Shazeer 2020): silu is SwiGLU, gelu is GEGLU."""

    activation: Activation = setting("silu", "elementwise function of the gate")


FEEDFORWARDS: dict[str, type[Config]] = {"mlp": MLP, "glu": GLU}


class NormalInit(Config):
    """One standard deviation for every matrix; those that write to the residual stream by 1/sqrt(2·layers) of it.

    GPT-2's scheme (Radford et al. 2019, §2.3; the figure 0.02 is GPT's, Radford et al. 2018, §4.1).
    """

    deviation: float = setting(0.02, "standard deviation of embeddings and matrices", gt=0)
    embedding_deviation: float | None = setting(None, "standard deviation of embeddings; null takes `deviation`")
    scale_residual: bool = setting(True, "divide residual projections' deviation by sqrt(2·layers)")


class FanInInit(Config):
    """Matrices by 1/sqrt(fan in), embeddings by `embedding_deviation`; residual projections scaled or zero."""

    embedding_deviation: float = setting(0.02, "standard deviation of embeddings", gt=0)
    residual_scale: float = setting(1.0, "factor on the deviation of projections into the residual stream", ge=0)


INITIALIZERS: dict[str, type[Config]] = {"normal": NormalInit, "fan_in": FanInInit}

RematPolicy = Literal["none", "full", "dots", "dots_no_batch"]


class LayerConfig(Config):
    """One layer of the repeating pattern."""

    attention: Annotated[Dense, OneOf(ATTENTION)] = setting(Dense(), "which keys a query may look at")
    feedforward: Annotated[MLP | GLU | None, OneOf(FEEDFORWARDS, optional=True)] = setting(
        None, "this layer's feed-forward; null takes `model.feedforward`"
    )


class ModelConfig(Config):
    """A Transformer as a composition of components. Sizes are the field's: embed, heads, head_dim, mlp, vocab."""

    family: Literal["decoder"] = setting("decoder", "which Transformer: a decoder is a causal language model")
    layers: Int = setting(..., "number of layers", ge=1)
    embed: Int = setting(..., "width of the residual stream", ge=1)
    heads: Int = setting(..., "number of query heads", ge=1)
    kv_heads: Int | None = setting(
        None, "number of key and value heads; null takes `heads`", ge=1, source="Ainslie et al. 2023"
    )
    head_dim: Int | None = setting(None, "width of a head; null takes embed / heads", ge=1)
    mlp: Int | None = setting(None, "width of the feed-forward; null takes 4·embed", ge=1)
    vocab: Int | None = setting(None, "rows of the embedding; null takes the tokenizer's size", ge=1)
    positions: Annotated[Learned | Rotary | Sinusoidal | NoPositions, OneOf(POSITIONS)] = setting(
        Learned(), "how a token knows its place"
    )
    norm: Annotated[LayerNorm | RMSNorm, OneOf(NORMS)] = setting(LayerNorm(), "normalisation of the residual stream")
    norm_place: Literal["pre", "post"] = setting("pre", "before each sublayer, or after each residual addition")
    query_key_norm: bool = setting(False, "normalise queries and keys per head", source="Dehghani et al. 2023, §2")
    feedforward: Annotated[MLP | GLU, OneOf(FEEDFORWARDS)] = setting(MLP(), "the position-wise sublayer")
    pattern: Annotated[tuple[LayerConfig, ...], Strict(False)] = setting(
        (LayerConfig(),), "layers of one period; repeated until `layers` are there", min_length=1
    )
    bias: bool = setting(True, "biases in the linear layers")
    tied: bool = setting(True, "the output matrix is the token embedding", source="Press & Wolf 2017")
    scale_embedding: float = setting(1.0, "factor on the token embedding", gt=0)
    logit_softcap: float | None = setting(None, "logits become cap·tanh(logits / cap)", gt=0)
    dropout: float = setting(0.0, "share of activations zeroed in training", ge=0, lt=1)
    init: Annotated[NormalInit | FanInInit, OneOf(INITIALIZERS)] = setting(NormalInit(), "initialisation of weights")
    compute: Literal["float32", "bfloat16"] = setting("float32", "type of activations; parameters stay float32")
    remat: RematPolicy = setting("none", "what the backward pass computes anew instead of keeping")
    unroll: Int = setting(1, "repeats of the pattern unrolled in one step of the scan over layers; 0 is all", ge=0)

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        if self.head_dim is None and self.embed % self.heads:
            raise ValueError(
                f"embed {self.embed} is not a multiple of heads {self.heads}; change one of them or give `head_dim`"
            )
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if isinstance(self.positions, Rotary) and self.width_of_head % 2:
            raise ValueError(f"rotary positions need an even head_dim, found {self.width_of_head}")
        if self.layers % len(self.pattern):
            raise ValueError(f"layers {self.layers} is not a multiple of the pattern's {len(self.pattern)} layers")
        return self

    @property
    def width_of_head(self) -> int:
        """Channels of one head."""
        return self.head_dim or self.embed // self.heads

    @property
    def key_value_heads(self) -> int:
        """Heads that have keys and values of their own."""
        return self.kv_heads or self.heads

    @property
    def width_of_mlp(self) -> int:
        """Channels inside the feed-forward."""
        return self.mlp or 4 * self.embed

    @property
    def repeats(self) -> int:
        """How often the pattern is repeated."""
        return self.layers // len(self.pattern)
