"""ModelSpec: a model without its weights, and how fresh weights are made."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
from flax import nnx
from jaxtyping import PRNGKeyArray, PyTree

from t5x_lite.models.character_embedding import CharacterEmbedding
from t5x_lite.models.character_ids import CharacterIds
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.electra import Electra
from t5x_lite.models.layers import Weight, WeightAxes
from t5x_lite.models.surgery import Surgeon
from t5x_lite.models.transformer import Decoder, Encoder, EncoderDecoder

FAMILIES: dict[str, Callable[..., nnx.Module]] = {
    "decoder": Decoder,
    "encoder": Encoder,
    "encoder_decoder": EncoderDecoder,
    "electra": Electra,
}

Surgery = Callable[[Surgeon], None]
"""Changes a newly created model for an adaptation method."""


@dataclass(frozen=True)
class ModelSpec:
    """The structure of a model.

    Attributes:
        graph: the modules without their arrays.
        axes: `WeightAxes` of every parameter, as a nested dict.
        shapes: shape and type of every parameter, as a nested dict.
        character_ids: the characters of every token, of a model with `characters`.
    """

    graph: nnx.GraphDef
    axes: PyTree[WeightAxes]
    shapes: PyTree[jax.ShapeDtypeStruct]
    character_ids: CharacterIds | None = None

    def model(self, params: PyTree) -> Any:
        """Return the module with these parameters, a nested dict."""

        def add_axes(axes: WeightAxes, value: jax.Array) -> Weight:
            return Weight(value, axes=axes)

        weights = jax.tree.map(add_axes, self.axes, params)
        model = nnx.merge(self.graph, nnx.State(weights))
        if self.character_ids is not None:
            for _, module in nnx.iter_modules(model):
                if isinstance(module, CharacterEmbedding):
                    module.character_ids = self.character_ids
        return model

    def with_blank_characters(self, config: ModelConfig) -> "ModelSpec":
        """Return the structure of a model that is compiled for its costs alone, without the words of a tokenizer."""
        if config.characters is None or config.vocab is None:
            return self
        return replace(self, character_ids=CharacterIds.blank((config.vocab, config.characters.length)))

    def is_output(self, axes: WeightAxes) -> bool:
        """Return whether an array is the output's matrix or bias; the table of the tokens is only in a tied model."""
        return "vocab" in axes.names and (self._is_tied or not axes.is_table)

    @property
    def _is_tied(self) -> bool:
        """Return whether no matrix multiplies states to scores of the vocabulary but the table of the tokens."""
        return not any("vocab" in axes.names and axes.inputs for axes in jax.tree.leaves(self.axes))

    @property
    def parameters(self) -> int:
        """Return the number of parameters."""
        return self._count(lambda axes: 1.0)

    @property
    def active_parameters(self) -> int:
        """Return the number of active parameters per token: of experts, as many as it is sent to."""
        return self._count(lambda axes: axes.active_share)

    @property
    def looked_up_parameters(self) -> int:
        """Return the number of parameters in tables of vectors that are looked up and are not the output's."""
        return self._count(lambda axes: float(axes.is_table and "embed" in axes.names and not self.is_output(axes)))

    def parameters_with_axis(self, name: str) -> int:
        """Return the number of parameters in arrays that have a logical axis."""
        return self._count(lambda axes: float(name in axes.names))

    def _count(self, share: Callable[[WeightAxes], float]) -> int:
        def count(axes: WeightAxes, shape: jax.ShapeDtypeStruct) -> float:
            return share(axes) * math.prod(shape.shape)

        return round(sum(jax.tree.leaves(jax.tree.map(count, self.axes, self.shapes))))


def create_model(config: ModelConfig, key: PRNGKeyArray | int, surgery: Surgery | None = None) -> nnx.Module:
    """Return a model with fresh weights."""
    rngs = nnx.Rngs(params=key)
    model = FAMILIES[config.family](config, rngs=rngs)
    if surgery is not None:
        surgery(Surgeon(model, config, rngs))
    return model


def model_spec(config: ModelConfig, surgery: Surgery | None = None) -> ModelSpec:
    """Return the structure of a model, without allocating anything."""
    graph, state = nnx.split(nnx.eval_shape(lambda: create_model(config, 0, surgery)))

    def weight_axes(weight: Weight) -> WeightAxes:
        return weight.axes

    def is_weight(leaf: object) -> bool:
        return isinstance(leaf, Weight)

    shapes = nnx.to_pure_dict(state)
    axes = nnx.to_pure_dict(jax.tree.map(weight_axes, state, is_leaf=is_weight))
    return ModelSpec(graph, axes, shapes)


def init_params(config: ModelConfig, key: PRNGKeyArray, surgery: Surgery | None = None) -> PyTree:
    """Return fresh parameters as a nested dict; call it under `jax.jit` with the shardings that they should have."""
    return nnx.to_pure_dict(nnx.state(create_model(config, key, surgery)))
