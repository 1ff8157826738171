"""Layers that the weights of a stack belong to, by the names of its parameters."""

import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.layer_config import LayerConfig

_NAME = re.compile(r"(.+)\.stack\.(first\.)?layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class LayerPath:
    """The parts of the name of a parameter of a layer, `STACK.stack.layers.INDEX.PARAMETER`.

    Attributes:
        stack: the module that has the stack, such as `encoder` or `generator.encoder`.
        is_first: the layer is one of `model.first`, whose names have `first.layers`.
        index: index of the layer in the pattern or in `model.first`.
        parameter: the name of the parameter in the layer.
    """

    stack: str
    is_first: bool
    index: int
    parameter: str

    @property
    def name(self) -> str:
        """The name of the parameter."""
        layers = "first.layers" if self.is_first else "layers"
        return f"{self.stack}.stack.{layers}.{self.index}.{self.parameter}"

    def period(self, model: ModelConfig) -> tuple[LayerConfig, ...]:
        """Return the layers that `index` counts: those of `model.first`, or of the pattern."""
        return model.first if self.is_first else model.period

    def numbers(self, model: ModelConfig) -> Int[np.ndarray, "repeats"]:
        """Return the number of the layer, from 0, of each entry of the parameter's array along its first axis.

        Layers of `model.first` come before those of the pattern. Layers do not share weights.
        """
        if self.is_first:
            return np.array([self.index])
        repeats = model.count_repeats(depth_of_stack(model, self.name))
        return len(model.first) + self.index + len(model.period) * np.arange(repeats)


def parse_layer_path(name: str) -> LayerPath | None:
    """Return the parts of the dotted name of a parameter, or None if it is in no layer of a stack."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    stack, first, index, parameter = match.groups()
    return LayerPath(stack, first is not None, int(index), parameter)


def depth_of_stack(model: ModelConfig, name: str) -> int:
    """Return the number of layers in the stack of a parameter, or in the one that reads a token table."""
    if model.generator is not None and name.startswith("generator."):
        return model.generator.layers
    if model.family == "encoder_decoder" and name.startswith(("decoder.", "decoder_tokens.")):
        return model.decoder_layers
    return model.layers
