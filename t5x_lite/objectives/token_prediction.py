"""The interface of objectives whose loss follows from the states of a model's last layer."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from t5x_lite.objectives.model_protocols import Array, Batch, DropoutKey, LossSettings, LossSums
from t5x_lite.objectives.objective import Objective


class TokenPrediction(Objective):
    """An objective that predicts tokens from the states of the last layer.

    Its states are computed apart from its loss, so that another loss can be computed from the same states
    (see `objectives.distillation`).
    """

    @abstractmethod
    def states(self, model: Any, batch: Batch, key: DropoutKey) -> Array:
        """Return the states from which tokens are predicted, `[batch, length, embed]`."""

    def loss_from_states(
        self, model: Any, states: Array, batch: Batch, settings: LossSettings
    ) -> Mapping[str, LossSums]:
        """Return the terms of the loss, by default the cross-entropy of `targets`; see `loss`."""
        from t5x_lite.models.losses import token_cross_entropy

        targets = batch["targets"]
        return {"loss": token_cross_entropy(model.logits, states, targets, batch["loss_weights"], settings)}

    def predicting_states(self, states: Array, batch: Batch) -> Array:
        """Return the states of the positions that `loss_weights` weighs, `[batch, predictions, embed]`."""
        return states

    def loss(self, model: Any, batch: Batch, key: DropoutKey, settings: LossSettings) -> Mapping[str, LossSums]:
        """Return the terms of the loss. The model is a `LanguageModel`."""
        return self.loss_from_states(model, self.states(model, batch, key), batch, settings)
