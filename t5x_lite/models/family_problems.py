"""Settings of a model that do not go together with its family."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from t5x_lite.models.attention.kinds import Dense
from t5x_lite.models.mixers import SelfAttention

if TYPE_CHECKING:
    from t5x_lite.models.config import ModelConfig


def family_problems(model: "ModelConfig") -> Iterator[str]:
    """Yield settings that are for another family than the model's."""
    if model.sublayers != "sequential" and model.family == "encoder_decoder":
        yield f"sublayers: {model.sublayers} is for models without cross-attention"
    if model.start_token and model.family != "encoder_decoder":
        yield "start_token is for encoder_decoder"
    if model.vocab is not None and model.start_token >= model.vocab:
        yield f"start_token {model.start_token} is not in a vocabulary of {model.vocab} tokens"
    if model.decoder_attention or model.decoder_mixer is not None:
        yield from _decoder_problems(model)
    if model.decoder_embedding == "separate" and (model.family != "encoder_decoder" or model.shared_stacks):
        yield "decoder_embedding: separate is for an encoder_decoder whose stacks are not shared"
    if model.shared_stacks and model.family != "encoder_decoder":
        yield "shared_stacks is for encoder_decoder"
    elif model.shared_stacks and model.layers != model.decoder_layers:
        yield "shared_stacks needs equal stacks"
    if model.prefix_lm and model.family != "decoder":
        yield "prefix_lm is for a decoder"
    if model.token_types and not model.is_encoder_only:
        yield "token_types is for an encoder: the texts of other families have no types"
    if model.query_stream and (model.family != "encoder" or model.state_mixers or model.mixtures):
        yield "query_stream is for an encoder whose layers are attention, without experts"
    if (model.generator is not None) != (model.family == "electra"):
        yield "electra, and it alone, has a `generator`"


def _decoder_problems(model: "ModelConfig") -> Iterator[str]:
    """Yield what is wrong with layers of the decoder that are not those of the encoder."""
    if model.family != "encoder_decoder" or model.shared_stacks:
        name = "decoder_attention" if model.decoder_attention else "decoder_mixer"
        yield f"{name} is for an encoder_decoder whose stacks are not shared"
    if model.decoder_attention and len(model.decoder_attention) not in {1, len(model.pattern)}:
        yield f"decoder_attention has {len(model.decoder_attention)} layers, the pattern {len(model.pattern)}"
        return
    decoder = model.decoder_model
    if model.mup is not None and decoder.state_mixers:
        yield "mup is for layers of attention, those of decoder_mixer included"
    for layer in decoder.pattern:
        yield from layer.model_problems(decoder)
        if model.decoder_attention and not isinstance(layer.mixer, SelfAttention) and layer.attention != Dense():
            yield "decoder_attention is for layers of attention, and a layer of the decoder has another mixer"
