"""What a foreign family is: its config from ours and back, and the table of its tensors."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from t5x_lite.checkpoint import flat
from t5x_lite.convert.tensors import Dialect, Layers, Modules, Table
from t5x_lite.models.config import Activation, ModelConfig
from t5x_lite.models.transformer import Blueprint

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu_squared",
    "silu": "silu",
    "swish": "silu",
}
"""Transformers' names of elementwise functions."""


def foreign_activation(ours: Activation) -> str:
    """Transformers' first name for one of ours."""
    return next(theirs for theirs, name in ACTIVATIONS.items() if name == ours)


class Family(ABC):
    """A model type of Transformers.

    `ignored` are patterns of tensors that hold nothing of their own (copies of tied matrices, masks); `renamed` maps
    spellings of older files; files may leave out `prefix`.
    """

    model_type: str
    architecture: str
    dialect: ClassVar[Dialect] = Dialect(transposed=True)
    objective: ClassVar[str]
    ignored: ClassVar[tuple[str, ...]] = ()
    renamed: ClassVar[Mapping[str, str]] = {}
    prefix: ClassVar[str] = ""

    @abstractmethod
    def model(self, hf: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
        """Our model's settings from their config and the names of their tensors."""

    @abstractmethod
    def config(self, model: ModelConfig) -> dict[str, Any]:
        """Their config of our model, which `model` turns back into the same."""

    @abstractmethod
    def modules(self, model: ModelConfig) -> tuple[Modules, list[Layers]]:
        """Their modules and ours, outside the layers and in each stack."""

    def table(self, model: ModelConfig, blueprint: Blueprint) -> Table:
        """Every tensor."""
        return table(blueprint, self.dialect, *self.modules(model))

    def objective_of(self, model: ModelConfig) -> Any:
        """The objective that such a model was trained on, as a setting; null where one alone cannot be."""
        return self.objective

    def architecture_of(self, model: ModelConfig) -> str:
        """The class of Transformers that holds this model."""
        return self.architecture


def table(
    blueprint: Blueprint, dialect: Dialect, modules: Modules, layers: list[Layers], separator: str = "."
) -> Table:
    """The table of a model's arrays."""
    return Table(flat(blueprint.axes), flat(blueprint.shapes), dialect, modules, layers, separator)
