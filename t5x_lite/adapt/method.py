"""The interface of an adaptation method: how a run's weights become the first weights of another run."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from t5x_lite.models.config import ModelConfig
from t5x_lite.schema import Config

Weights = Mapping[str, Any]
"""Arrays by dotted name; those of a stack's layers have a leading axis over the repeats of its pattern."""


class Method(Config):
    """A way from one model to another. Its fields are its settings."""

    def check(self, model: ModelConfig) -> None:
        """Refuse a model that cannot be made this way, with a ValueError that says why."""

    @abstractmethod
    def weights(self, old: Weights, fresh: Weights, models: "Models", xp: Any) -> dict[str, Any]:
        """The first weights of the new model, by the names of `fresh`, which are newly drawn; `xp` is `jax.numpy`.

        A name that the method cannot make is left out.
        """


@dataclass(frozen=True)
class Models:
    """The model that is adapted, and the one that it becomes."""

    old: ModelConfig
    new: ModelConfig
