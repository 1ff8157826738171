"""A shallower model begins with some of the layers of a deeper one: DistilBERT (Sanh et al. 2019, §3)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, TypeAlias

import numpy as np
from pydantic import Strict

from t5x_lite.adapt.method import AdaptationMethod, ModelPair, NamedArrays
from t5x_lite.arrays import Array
from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layer_numbers import layer_numbers
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
        outside = {name: value for name, value in fresh.items() if layer_numbers(name, models.new) is None}
        weights = super().initial_weights(old, outside, models)
        for name in fresh:
            numbers = layer_numbers(name, models.new)
            if numbers is None:
                continue
            stack, parameter = _stack_and_parameter(name)
            sources = self._sources(stack, models)
            keys = [(stack, sources[number], parameter) for number in numbers]
            if all(key in layer_arrays for key in keys):
                weights[name] = jnp.stack([layer_arrays[key] for key in keys])
        return weights

    def _sources(self, stack: str, models: ModelPair) -> tuple[int, ...]:
        """Return the layer of the old model that each layer of a stack of the new one is copied from."""
        numbers = self.layers
        old_layers = models.old.layers
        layers = models.new.layers
        if stack.startswith("decoder") and models.new.family == "encoder_decoder":
            numbers = self.decoder_layers
            old_layers = models.old.decoder_layers
            layers = models.new.decoder_layers
        if not numbers:
            return evenly_spaced(layers, old_layers)
        if max(numbers) >= old_layers:
            raise UserError(f"adapt.method copy_layers: the other run has no layer {max(numbers)}, only {old_layers}")
        return numbers


def evenly_spaced(count: int, layers: int) -> tuple[int, ...]:
    """Return `count` of the numbers from 0 to `layers` - 1, from the first to the last, rounded."""
    if count > layers:
        raise UserError(f"adapt.method copy_layers: the other run has {layers} layers, too few for {count}; name them")
    return tuple(int(number) for number in np.round(np.linspace(0, layers - 1, count)))


def _stack_and_parameter(name: str) -> tuple[str, str]:
    """Return the stack of a parameter, such as `encoder`, and its name in a layer."""
    stack, _, path = name.partition(".stack.")
    _, _, place_and_parameter = path.partition("layers.")
    _, _, parameter = place_and_parameter.partition(".")
    return stack, parameter


def _layer_arrays(weights: NamedArrays, model: ModelConfig) -> LayerArrays:
    arrays = {}
    for name, value in weights.items():
        numbers = layer_numbers(name, model)
        if numbers is None:
            continue
        stack, parameter = _stack_and_parameter(name)
        for repeat, number in enumerate(numbers):
            arrays[stack, int(number), parameter] = value[repeat]
    return arrays
