"""What a model is made of: positions, norms, feed-forwards, initialisations, a layer of the pattern.

Pure data: no JAX here, as in `config.py`.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from t5x_lite.models.attention.kinds import ATTENTION, AttentionKind, Dense
from t5x_lite.models.experts.config import DISPATCHES, ROUTERS, Capacity, Dropless, ExpertChoice, Router, Switch
from t5x_lite.schema import Config, Int, OneOf, setting


class Learned(Config):
    """A trained vector per absolute position, added to the token embedding (Radford et al. 2018)."""

    length: Int = setting(1024, "number of positions that have a vector", unit="tokens", ge=1)
    offset: Int = setting(0, "unused rows before the first position", ge=0, source="RoBERTa and OPT: 2, in their code")


class Llama3Stretch(Config):
    """Longer wavelengths for longer contexts (Llama 3.1, Grattafiori et al. 2024, §3.4.2 and its code).

    Wavelengths above original_length / low are stretched by `factor`, those below original_length / high are kept.
    """

    factor: float = setting(8.0, "stretch of long wavelengths", gt=1)
    low: float = setting(1.0, "turns within the original length below which a wavelength is stretched in full", gt=0)
    high: float = setting(4.0, "turns above which it is kept", gt=0)
    original_length: Int = setting(8192, "context before the stretch", unit="tokens", ge=1)


STRETCHES: dict[str, type[Config]] = {"llama3": Llama3Stretch}


class Rotary(Config):
    """Queries and keys rotated by an angle that grows with position (Su et al. 2021), in the half-split form."""

    theta: float = setting(
        10000.0, "base of the geometric series of wavelengths", gt=0, source="Su et al. 2021, §3.2.2"
    )
    stretch: Annotated[Llama3Stretch | None, OneOf(STRETCHES)] = setting(
        None, "how wavelengths are stretched for a longer context"
    )


class Relative(Config):
    """A trained number per head and bucket of distance, added to the scores (Raffel et al. 2020, §2.1)."""

    buckets: Int = setting(32, "buckets; half of them for each direction in an encoder", ge=4)
    distance: Int = setting(128, "distance from which on all fall into the last bucket", unit="tokens", ge=2)
    shared: bool = setting(True, "one table for all layers of a stack; false: one a layer", source="umT5: Chung 2023")


class ALiBi(Config):
    """A fixed penalty that grows with distance, steeper from head to head (Press et al. 2022)."""


class Sinusoidal(Config):
    """Fixed sines and cosines added to the token embedding (Vaswani et al. 2017, §3.5)."""


class NoPositions(Config):
    """No information on position beyond what the causal mask gives."""


POSITIONS: dict[str, type[Config]] = {
    "learned": Learned,
    "sinusoidal": Sinusoidal,
    "rotary": Rotary,
    "relative": Relative,
    "alibi": ALiBi,
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
    dropout: float = setting(0.0, "share of inner activations zeroed in training", ge=0, lt=1, source="T5's code")


class GLU(Config):
    """Two input matrices, one of them gated by the activation (Shazeer 2020): silu is SwiGLU, gelu is GEGLU."""

    activation: Activation = setting("silu", "elementwise function of the gate")
    dropout: float = setting(0.0, "share of inner activations zeroed in training", ge=0, lt=1, source="T5's code")


EXPERTS: dict[str, type[Config]] = {"mlp": MLP, "glu": GLU}


class MoE(Config):
    """Feed-forward layers side by side, of which each token passes a few (Shazeer et al. 2017)."""

    experts: Int = setting(8, "experts of a layer", ge=1)
    router: Annotated[Router, OneOf(ROUTERS)] = setting(Switch(), "which experts a token is sent to")
    dispatch: Annotated[Capacity | Dropless, OneOf(DISPATCHES)] = setting(Capacity(), "how it gets there")
    expert: Annotated[MLP | GLU | None, OneOf(EXPERTS)] = setting(
        None, "what an expert is; null takes `model.feedforward`"
    )
    mlp: Int | None = setting(None, "width of an expert; null takes `model.mlp`", ge=1)
    shared: Int = setting(0, "experts that every token passes beside", ge=0, source="DeepSeekMoE, Dai 2024, §3.2")

    def problems(self) -> Iterator[str]:
        """More choices than experts, or a router that a dispatch cannot serve."""
        if self.router.choices > self.experts:
            yield f"moe: the router sends a token to {self.router.choices} of {self.experts} experts"
        if isinstance(self.router, ExpertChoice) and isinstance(self.dispatch, Dropless):
            yield "moe: expert_choice fills every expert to its room, which dispatch=dropless has none of"


class DenseFeedForward(Config):
    """The feed-forward of the model, or where that has experts, one like them."""


FEEDFORWARDS: dict[str, type[Config]] = EXPERTS | {"moe": MoE}


class NormalInit(Config):
    """One standard deviation for every matrix; those that write to the residual stream by 1/sqrt(2·layers) of it.

    GPT-2's scheme (Radford et al. 2019, §2.3; the figure 0.02 is GPT's, Radford et al. 2018, §4.1).
    """

    deviation: float = setting(0.02, "standard deviation of embeddings and matrices", gt=0)
    embedding_deviation: float | None = setting(None, "standard deviation of embeddings; null takes `deviation`")
    scale_residual: bool = setting(True, "divide residual projections' deviation by sqrt(2·layers)")


class FanInInit(Config):
    """Matrices by 1/sqrt(fan in), embeddings by `embedding_deviation`; residual projections scaled or zero.

    Where `attention_scale` is given, queries start so small that scores begin as under 1/sqrt(head_dim) (T5's code).
    """

    embedding_deviation: float = setting(0.02, "standard deviation of embeddings", gt=0)
    residual_scale: float = setting(1.0, "factor on the deviation of projections into the residual stream", ge=0)
    scale: float = setting(1.0, "factor on the variance of matrices", gt=0, source="Fedus et al. 2022, §2.4: s")


class MaximalUpdate(Config):
    """Rates and deviations tuned at one width serve wider models (µP for Adam: Yang et al. 2022, table 8).

    With m = embed / base: matrices inside are drawn with 1/sqrt(m) of the deviation and learn at 1/m of the rate,
    logits are divided by m, scores by head_dim instead of its root. All widths must grow together.
    """

    embed: Int = setting(..., "width of the base, at which nothing changes", ge=1)
    head_dim: Int | None = setting(None, "the base's width of a head; null: the same as here", ge=1)


INITIALIZERS: dict[str, type[Config]] = {"normal": NormalInit, "fan_in": FanInInit}


class LayerConfig(Config):
    """One layer of the repeating pattern."""

    attention: Annotated[AttentionKind, OneOf(ATTENTION)] = setting(Dense(), "which keys a query may look at")
    feedforward: Annotated[
        MLP | GLU | MoE | DenseFeedForward | None, OneOf({"dense": DenseFeedForward, **FEEDFORWARDS})
    ] = setting(None, "this layer's feed-forward; null takes `model.feedforward`, dense the same without experts")
