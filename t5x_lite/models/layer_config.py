"""One layer of the repeating pattern: its mixer, its attention, its positions and its feed-forward."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from t5x_lite.models.attention.kinds import ATTENTION, AttentionKind, Dense, Local
from t5x_lite.models.experts.config import MoE
from t5x_lite.models.feedforward.config import EXPERT_FEEDFORWARDS, GLU, MLP, DenseFeedForward, NoFeedForward
from t5x_lite.models.mixers import MIXERS, Mixer, SelfAttention
from t5x_lite.models.positions import NoPositions, PositionEncoding, Rotary
from t5x_lite.schema import Config, OneOf, setting

if TYPE_CHECKING:
    from t5x_lite.models.config import ModelConfig

FEEDFORWARDS: dict[str, type[Config]] = EXPERT_FEEDFORWARDS | {"moe": MoE, "none": NoFeedForward}
LAYER_FEEDFORWARDS: dict[str, type[Config]] = {"dense": DenseFeedForward, **FEEDFORWARDS}

LAYER_POSITIONS: dict[str, type[PositionEncoding]] = {"rotary": Rotary, "none": NoPositions}
"""Position encodings that may differ from layer to layer: they have no parameters and add no bias."""


class LayerConfig(Config):
    """One layer of the repeating pattern."""

    mixer: Annotated[Mixer, OneOf(MIXERS)] = setting(SelfAttention(), "what moves information between tokens")
    attention: Annotated[AttentionKind, OneOf(ATTENTION)] = setting(Dense(), "which keys a query may attend to")
    feedforward: Annotated[MLP | GLU | MoE | NoFeedForward | DenseFeedForward | None, OneOf(LAYER_FEEDFORWARDS)] = (
        setting(None, "this layer's feed-forward; null takes `model.feedforward`, dense the same without experts")
    )
    positions: Annotated[Rotary | NoPositions | None, OneOf(LAYER_POSITIONS)] = setting(
        None, "how this layer rotates queries and keys; null takes `model.positions`", source="Gemma 3, §2"
    )
    norm: bool = setting(
        True, "normalise the mixer's input; ModernBERT's first layer does not", source="Warner et al. 2024, §2.1"
    )
    residual: bool = setting(
        True,
        "add the input of each sublayer to its output, if `model.residual` is set; ELMo's first layer does not",
        source="Peters et al. 2018, §3.4",
    )

    def model_problems(self, model: "ModelConfig") -> Iterator[str]:
        """Yield what a model has that the layer does not work with."""
        yield from self.attention.model_problems(model)
        yield from self.mixer.model_problems(model)
        if self.positions is not None:
            yield from self.positions.model_problems(model)
        if not self.norm and model.norm_place != "pre":
            yield f"norm: false of a layer is for norm_place: pre, not {model.norm_place}"
        if not self.residual and (model.norm_place != "pre" or model.sublayers != "sequential"):
            yield "residual: false of a layer is for norm_place: pre and sublayers: sequential"

    def problems(self) -> Iterator[str]:
        """Yield an attention kind of a layer without attention, or for which it has too many keys."""
        if not isinstance(self.mixer, SelfAttention) and self.attention != Dense():
            yield "attention is for mixer: attention"
        has_memory = isinstance(self.mixer, SelfAttention) and self.mixer.memory > 0
        if has_memory and not isinstance(self.attention, Dense | Local):
            yield "mixer.attention.memory is for dense and local attention"
