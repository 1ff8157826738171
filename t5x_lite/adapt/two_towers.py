"""Two encoders: that of the run reads queries, and a second one of the same sizes reads passages."""

from typing import TYPE_CHECKING

from t5x_lite.adapt.method import AdaptationMethod, ModelPair, NamedArrays
from t5x_lite.arrays import Array
from t5x_lite.models.config import ModelConfig

if TYPE_CHECKING:
    from t5x_lite.models.surgery import Surgeon

PREFIX = "passage_encoder."
"""Beginning of the names of the passage encoder's parameters."""


class TwoTowers(AdaptationMethod):
    """As `full`, with a second encoder for the passages of `retrieval` (Karpukhin et al. 2020, §3.1). Both train.

    Both begin with the weights of the run that is adapted.
    """

    def check(self, model: ModelConfig) -> None:
        """Raise ValueError for a model without pooled states, and for one of experts, whose routers are counted."""
        if model.head is None or model.head.outputs:
            raise ValueError("adapt.method two_towers is for the objective retrieval")
        if model.mixtures:
            raise ValueError("adapt.method two_towers is not for models of experts; take full, a shared encoder")

    def surgery(self, surgeon: "Surgeon") -> None:
        """Add the passage encoder."""
        surgeon.add_passage_encoder()

    def initial_weights(self, old: NamedArrays, fresh: NamedArrays, models: ModelPair) -> dict[str, Array]:
        """Return the old weights twice."""
        return {name: old[name.removeprefix(PREFIX)] for name in fresh if name.removeprefix(PREFIX) in old}

    def merged_weights(self, weights: NamedArrays) -> dict[str, Array] | None:
        """Return None: two encoders are not a single model."""
        return None
