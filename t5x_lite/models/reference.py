"""The frozen reference of a model that is adapted: the model as it was at step 0."""

from typing import Any

from flax import nnx

from t5x_lite.models.attention.layer import Attention
from t5x_lite.models.block import Block
from t5x_lite.models.character_embedding import CharacterEmbedding
from t5x_lite.models.layers import Embed, Linear
from t5x_lite.models.stack import Stack


def reference_model(model: Any) -> Any:
    """Return the model that an adapted one began as, with the same arrays.

    It is the copy that `adapt.method=reference` keeps beside the model, or the model without the modules that an
    adaptation method has added: its base is frozen, so that no array exists twice.
    """
    copy = getattr(model, "reference", None)
    if copy is not None:
        return copy
    graph, state = nnx.split(model)
    base = nnx.merge(graph, state)
    for _, module in nnx.iter_modules(base):
        if isinstance(module, Linear):
            module.adapter = nnx.data(None)
        elif isinstance(module, Block):
            module.adapters = nnx.data(None)
        elif isinstance(module, Attention):
            module.prefix = nnx.data(None)
        elif isinstance(module, Stack):
            module.mix = nnx.data(None)
        elif isinstance(module, Embed | CharacterEmbedding):
            module.prompt = nnx.data(None)
    return base
