"""A shallower model begins with some of the layers of a deeper one: DistilBERT (Sanh et al. 2019, §3)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, TypeAlias

import numpy as np
from pydantic import Strict

from t5x_lite.adapt.method import AdaptationMethod, ModelPair, NamedArrays
from t5x_lite.arrays import Array
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layer_path import LayerPath, depth_of_stack, parse_layer_path
from t5x_lite.schema import Int, setting

Layers = Annotated[tuple[Int, ...], Strict(False)]
"""Numbers of layers, from 0."""
LayerArrays: TypeAlias = Mapping[tuple[str, int, str], Array]
"""The weights of each layer, by stack, number of the layer and parameter."""


class CopyLayers(AdaptationMethod):
    """All weights train; the layers begin as these of the other run, and all else as in `full`.

    By default they are evenly spaced from the first to the last, such as DistilBERT's 0, 2, 4, 7, 9, 11 of BERT's 12.
    """

    changed_settings: ClassVar[tuple[str, ...]] = ("layers", "decoder_layers")

    layers: Layers = setting(
        (), "layers of the other run, from 0, for each of this model's in their order; [] spaces them evenly"
    )
    decoder_layers: Layers = setting((), "those of the decoder of an encoder_decoder, likewise")

    def check(self, model: ModelConfig) -> None:
        """Raise ValueError for another number of layers than the model has, or layers that share their weights."""
        if model.shared_layers:
            raise ValueError("adapt.method copy_layers: the layers of this model share their weights; take full")
        counts = [("layers", self.layers, model.layers)]
        if model.family == "encoder_decoder":
            counts.append(("decoder_layers", self.decoder_layers, model.decoder_layers))
        elif self.decoder_layers:
            raise ValueError("adapt.method copy_layers.decoder_layers: is for an encoder_decoder; set layers")
        for name, numbers, layers in counts:
            if numbers and len(numbers) != layers:
                raise ValueError(
                    f"adapt.method copy_layers.{name}: names {len(numbers)} layers, and the model has {layers}"
                )
            if any(number < 0 for number in numbers):
                raise ValueError(f"adapt.method copy_layers.{name}: layers are numbered from 0")

    def initial_weights(self, old: NamedArrays, fresh: NamedArrays, models: ModelPair) -> dict[str, Array]:
        """Return copies for the layers, and the old weights for everything else.

        Raises:
            UserError: the other run has too few layers, or layers that share their weights.
        """
        import jax.numpy as jnp

        if models.old.shared_layers:
            raise UserError("adapt.method copy_layers: the layers of the other run share their weights; take full")
        layer_arrays = _layer_arrays(old, models.old)
        outside = {name: value for name, value in fresh.items() if parse_layer_path(name) is None}
        weights = super().initial_weights(old, outside, models)
        for name in fresh:
            path = parse_layer_path(name)
            if path is None:
                continue
            sources = self._sources(path, models)
            keys = [(path.stack, sources[number], path.parameter) for number in path.numbers(models.new)]
            if all(key in layer_arrays for key in keys):
                weights[name] = jnp.stack([layer_arrays[key] for key in keys])
        return weights

    def _sources(self, path: LayerPath, models: ModelPair) -> tuple[int, ...]:
        """Return the layer of the old model that each layer of a stack of the new one is copied from."""
        old_layers = depth_of_stack(models.old, path.name)
        numbers = self.layers
        if models.new.family == "encoder_decoder" and path.stack == "decoder":
            numbers = self.decoder_layers
        if not numbers:
            return evenly_spaced(depth_of_stack(models.new, path.name), old_layers)
        if max(numbers) >= old_layers:
            raise UserError(f"adapt.method copy_layers: the other run has no layer {max(numbers)}, only {old_layers}")
        return numbers


def evenly_spaced(count: int, layers: int) -> tuple[int, ...]:
    """Return `count` of the numbers from 0 to `layers` - 1, from the first to the last, rounded."""
    if count > layers:
        raise UserError(f"adapt.method copy_layers: the other run has {layers} layers, too few for {count}; name them")
    return tuple(int(number) for number in np.round(np.linspace(0, layers - 1, count)))


def _layer_arrays(weights: NamedArrays, model: ModelConfig) -> LayerArrays:
    arrays = {}
    for name, value in weights.items():
        path = parse_layer_path(name)
        if path is None:
            continue
        for repeat, number in enumerate(path.numbers(model)):
            arrays[path.stack, int(number), path.parameter] = value[repeat]
    return arrays
