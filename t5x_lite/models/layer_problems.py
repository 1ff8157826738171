"""Settings of layers that do not go together with each other or with the model."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from t5x_lite.models.attention.kinds import TransientGlobal
from t5x_lite.models.experts.config import MoE
from t5x_lite.models.mixers import LatentAttention
from t5x_lite.models.positions import NoPositions, Rotary

if TYPE_CHECKING:
    from t5x_lite.models.config import ModelConfig


def layer_problems(model: "ModelConfig") -> Iterator[str]:
    """Yield what is wrong with the layers of a model."""
    for layer in (*model.first, *model.pattern):
        yield from layer.model_problems(model)
    has_layer_positions = any(layer.positions is not None for layer in (*model.first, *model.pattern))
    if has_layer_positions and not isinstance(model.positions, Rotary | NoPositions):
        yield "positions of layers of the pattern are for a model whose own are rotary or none"
    yield from _content_bias_problems(model)
    if model.first:
        yield from _first_layer_problems(model)
    if model.state_mixers:
        yield from _state_mixer_problems(model)
    yield from _sharing_problems(model)
    yield from _expert_problems(model)


def _content_bias_problems(model: "ModelConfig") -> Iterator[str]:
    layers = (*model.first, *model.pattern)
    parts = [*[layer.mixer for layer in layers], *[layer.attention for layer in layers]]
    if model.positions.reads_content and any(isinstance(part, LatentAttention | TransientGlobal) for part in parts):
        yield "positions with a content-dependent bias are not for latent or transient_global attention"


def _first_layer_problems(model: "ModelConfig") -> Iterator[str]:
    if model.family not in {"decoder", "encoder"} or model.shared_layers:
        yield "first is for a decoder or an encoder whose layers do not share weights"
    if len(model.first) >= model.layers:
        yield f"first has {len(model.first)} of {model.layers} layers; at least one must be of the pattern"
    if any(isinstance(model.feedforward_of(layer), MoE) for layer in model.first):
        yield "layers of first have no experts: give them feedforward: dense"


def _state_mixer_problems(model: "ModelConfig") -> Iterator[str]:
    if model.mup is not None:
        yield "mup is for layers of attention"
    if model.prefix_lm:
        yield "prefix_lm is for layers of attention: a recurrence reads a row from left to right"


def _expert_problems(model: "ModelConfig") -> Iterator[str]:
    if len({moe.experts for moe in model.mixtures}) > 1:
        yield "layers of different numbers of experts cannot be measured together; give all the same"
    experts_choose = any(moe.router.experts_choose_tokens for moe in model.mixtures)
    if experts_choose and not model.is_encoder_only:
        yield "router expert_choice is for encoders: an expert's choice depends on later tokens"
    tokens_alone = set(model.outputs) == {"tokens"}
    if model.mup is not None and (model.mixtures or model.embedding != model.embed or not tokens_alone):
        yield "mup is for models without experts, of one width, that predict tokens"


def _sharing_problems(model: "ModelConfig") -> Iterator[str]:
    if model.shared_groups == 1:
        return
    if not model.shared_layers:
        yield "shared_groups is for shared_layers"
    depths = {"layers": model.layers, "decoder_layers": model.decoder_layers}
    for name, layers in depths.items():
        repeats = model.count_repeats(layers)
        if repeats % model.shared_groups:
            yield f"{name}: {repeats} repeats of the pattern cannot be cut into {model.shared_groups} equal groups"
