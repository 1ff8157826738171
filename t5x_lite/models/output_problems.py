"""Combinations of a model's outputs, head and embedding that are refused."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t5x_lite.models.config import ModelConfig


def output_problems(model: "ModelConfig") -> Iterator[str]:
    """Yield what does not fit together between what a model predicts and the rest of it."""
    if model.bfloat16_embedding_scale and not model.scale_embedding:
        yield "bfloat16_embedding_scale is for scale_embedding: true"
    if model.head is not None and model.family not in {"encoder", "decoder"}:
        yield (
            f"a head is for an encoder or a decoder, not a model of family {model.family}; train an encoder_decoder "
            "on a task's text form, and of electra its discriminator (family: encoder)"
        )
    if model.head is not None and model.head.mixer is not None:
        # Whatever the family, a head sees a text whole.
        yield from model.head.mixer.model_problems(model.model_copy(update={"family": "encoder"}))
    if not model.is_encoder_only and set(model.outputs) != {"tokens"}:
        yield f"outputs of a {model.family} are [tokens]"
    if model.family == "electra" and model.outputs != ("detection",):
        yield "outputs of electra's discriminator are [detection]"
    if model.family == "electra" and model.embedding_dropout:
        yield "embedding_dropout is not for electra, whose models share their embeddings"
    if model.embedding_projection == "tokens" and (model.embedding == model.embed or model.family == "electra"):
        yield "embedding_projection: tokens is for an `embedding` narrower than `embed`, and not for electra"
    if model.embedding_projection == "tokens" and model.token_copies > 1:
        yield "token_copies is for embedding_projection: sum, which projects the copies side by side"
    projects_back = model.output_transform or model.embedding_projection == "tokens"
    if model.embedding != model.embed and not projects_back and "tokens" in model.outputs:
        yield "`embedding` narrower than `embed` needs output_transform or embedding_projection: tokens"
