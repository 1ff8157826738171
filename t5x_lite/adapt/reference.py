"""All weights train, and a frozen copy of the first weights stays beside them, for losses that compare with it."""

from typing import TYPE_CHECKING, ClassVar

from t5x_lite.adapt.method import AdaptationMethod, ModelPair, NamedArrays
from t5x_lite.arrays import Array
from t5x_lite.models.config import ModelConfig

if TYPE_CHECKING:
    from t5x_lite.models.surgery import Surgeon

PREFIX = "reference."
"""Beginning of the names of the copy's parameters."""


class Reference(AdaptationMethod):
    """As `full`, with the reference model of `preference` (Rafailov et al. 2023, §4). Checkpoints leave it out."""

    copies_base: ClassVar[bool] = True

    def check(self, model: ModelConfig) -> None:
        """Raise ValueError for a model of experts, whose routers would count the copy's tokens too."""
        if model.mixtures:
            raise ValueError("adapt.method reference is not for models of experts; take lora, whose base is frozen")

    def surgery(self, surgeon: "Surgeon") -> None:
        """Add the copy."""
        surgeon.add_reference()

    def first_trained_repeat(self, name: str, model: ModelConfig) -> int | None:
        """Train everything but the copy."""
        return None if name.startswith(PREFIX) else 0

    def initial_weights(self, old: NamedArrays, fresh: NamedArrays, models: ModelPair) -> dict[str, Array]:
        """Return the first weights of the model, and of the copy, twice the same."""
        model_names = {name: value for name, value in fresh.items() if not name.startswith(PREFIX)}
        weights = super().initial_weights(old, model_names, models)
        copies = {f"{PREFIX}{name}": value for name, value in weights.items() if f"{PREFIX}{name}" in fresh}
        return {**weights, **copies}

    def merged_weights(self, weights: NamedArrays) -> dict[str, Array] | None:
        """Leave the copy out."""
        return {name: value for name, value in weights.items() if not name.startswith(PREFIX)}
