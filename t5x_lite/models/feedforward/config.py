"""Settings of the position-wise feed-forward layer."""

from typing import ClassVar, Literal

from t5x_lite.schema import Config, setting

Activation = Literal["gelu", "gelu_tanh", "relu", "silu", "relu_squared", "quick_gelu"]


class MLP(Config):
    """Two matrices with an activation between them (Vaswani et al. 2017, §3.3)."""

    is_gated: ClassVar[bool] = False

    activation: Activation = setting("gelu_tanh", "elementwise function; `gelu` is the exact one, by erf")
    dropout: float = setting(0.0, "share of inner activations zeroed in training", ge=0, lt=1, source="T5's code")


class GLU(Config):
    """Two input matrices, one of them gated by the activation (Shazeer 2020): silu is SwiGLU, gelu is GEGLU."""

    is_gated: ClassVar[bool] = True

    activation: Activation = setting(
        "silu", "elementwise function of the gate; `quick_gelu` is x·sigmoid(1.702 x)", source="Hendrycks 2016, §2"
    )
    limit: float | None = setting(
        None, "the gate is at most this, the other factor between minus this and this", gt=0, source="gpt-oss's code"
    )
    offset: float = setting(0.0, "added to the other factor; gpt-oss has 1", source="gpt-oss's code")
    dropout: float = setting(0.0, "share of inner activations zeroed in training", ge=0, lt=1, source="T5's code")


class DenseFeedForward(Config):
    """The model's feed-forward or, where that has experts, one like its experts."""


class NoFeedForward(Config):
    """No feed-forward: the layer is its mixer alone."""


EXPERT_FEEDFORWARDS: dict[str, type[Config]] = {"mlp": MLP, "glu": GLU}
"""Kinds of experts."""
