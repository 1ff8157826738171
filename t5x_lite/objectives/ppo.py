"""Proximal policy optimisation of a language model: Schulman et al. 2017; for language: Stiennon et al. 2020, §3.4."""

from collections.abc import Mapping
from typing import Any, ClassVar

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.head_config import HeadConfig
from t5x_lite.objectives.answer_rows import (
    answer_rows,
    answer_states,
    log_probabilities,
    policy_loss,
    reference_log_probabilities,
)
from t5x_lite.objectives.model_protocols import Array, Batch, DropoutKey, LossSettings, LossSums
from t5x_lite.objectives.policy_optimization import PolicyOptimization
from t5x_lite.schema import setting


class PPO(PolicyOptimization):
    """Raise rewards by the advantages that a value head on the model's states predicts; see `PolicyOptimization`.

    The reward of a token is -β·log(π/π_ref), and that of the last token also the reward of the answer. Policy and value
    share the layers, as in Ziegler et al. 2019.
    """

    name: ClassVar[str] = "ppo"

    beta: float = setting(
        0.02, "weight of the KL divergence in the rewards; 0 needs no reference", ge=0, source="Ouyang et al. 2022, C.4"
    )
    discount: float = setting(1.0, "γ", ge=0, le=1, source="Ouyang et al. 2022, C.4")
    decay: float = setting(0.95, "λ of generalised advantages", ge=0, le=1, source="Ziegler et al. 2019, code")
    value_weight: float = setting(0.1, "weight of the value loss", ge=0, source="Ziegler et al. 2019, code")
    value_clip: float = setting(
        0.2, "largest change of a value that its loss rewards", gt=0, source="Ziegler et al. 2019, code"
    )

    @property
    def group_size(self) -> int:
        return 1

    @property
    def kl_weight(self) -> float:
        return self.beta

    @property
    def term_weights(self) -> Mapping[str, str]:
        return {"loss": "answer_weights", "value": "answer_weights"}

    def head(self, model: ModelConfig) -> HeadConfig:
        """Return the value head, one number for each token."""
        return HeadConfig(outputs=1, pool="none")

    def prepare(self, model: Any, batch: Batch, settings: LossSettings) -> dict[str, Array]:
        """Return rows of answers with advantages and returns; see `PolicyOptimization.prepare`."""
        from t5x_lite.models.policy_losses import generalised_advantages, token_rewards, whiten

        rows = answer_rows(batch)
        states = answer_states(model, rows)
        scores = log_probabilities(model, states, rows, settings, self.temperature)
        rows["old_log_probabilities"] = scores
        reference_scores = scores
        if self.needs_reference:
            reference_scores = reference_log_probabilities(model, rows, settings, self.temperature)
            rows["reference_log_probabilities"] = reference_scores
        mask = rows["answer_weights"]
        rewards = token_rewards(batch["rewards"].reshape(-1), scores, reference_scores, mask, self.beta)
        values = model.head(states, None)[..., 0]
        advantages, returns = generalised_advantages(rewards, values, mask, self.discount, self.decay)
        rows["advantages"] = whiten(advantages, mask)
        rows["returns"] = returns
        rows["old_values"] = values
        rows["token_weights"] = mask
        return rows

    def loss(self, model: Any, batch: Batch, key: DropoutKey, settings: LossSettings) -> Mapping[str, LossSums]:
        """Return the clipped losses of the policy and of the values (Schulman et al. 2017, eq. 9)."""
        from t5x_lite.models.losses import LossSums
        from t5x_lite.models.policy_losses import clipped_value_losses

        states = answer_states(model, batch)
        values = model.head(states, None)[..., 0]
        value_losses = clipped_value_losses(values, batch["old_values"], batch["returns"], self.value_clip)
        weights = batch["answer_weights"]
        value_loss = LossSums.of_loss((weights * value_losses).sum(), weights.sum())
        return {
            "loss": policy_loss(self, model, states, batch, settings),
            "value": value_loss.scaled(self.value_weight),
        }
