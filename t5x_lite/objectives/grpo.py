"""Group relative policy optimisation: DeepSeekMath, Shao et al. 2024, §4.1."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from t5x_lite.objectives.answer_rows import (
    answer_rows,
    answer_states,
    log_probabilities,
    policy_loss,
    reference_log_probabilities,
)
from t5x_lite.objectives.model_protocols import Array, Batch, DropoutKey, LossSettings, LossSums
from t5x_lite.objectives.policy_optimization import PolicyOptimization
from t5x_lite.schema import Int, setting


class GRPO(PolicyOptimization):
    """Raise the probability of answers that are better than the others to their prompt; see `PolicyOptimization`.

    The advantage of an answer, the same for all of its tokens, is its reward relative to its group.
    """

    name: ClassVar[str] = "grpo"
    kl_in_loss: ClassVar[bool] = True

    group: Int = setting(8, "answers to a prompt", ge=2, source="DeepSeekMath, Shao et al. 2024, §4.2: 64")
    beta: float = setting(
        0.04, "weight of the KL divergence in the loss; 0 needs no reference", ge=0, source="Shao et al. 2024, §4.2"
    )
    average: Literal["answers", "tokens", "length"] = setting(
        "answers",
        "mean of the loss over the tokens of an answer, then over answers; over all tokens (DAPO); or the sum over "
        "tokens divided by `answer_len`, with advantages that are not divided by the deviation (Dr. GRPO)",
        source="Shao et al. 2024, eq. 3; Yu et al. 2025, eq. 12; Liu et al. 2025, §3.2",
    )

    @property
    def group_size(self) -> int:
        return self.group

    @property
    def kl_weight(self) -> float:
        return self.beta

    @property
    def term_weights(self) -> Mapping[str, str]:
        if self.average == "tokens":
            return {"loss": "answer_weights"}
        return {"loss": "loss_weights"}

    def prepare(self, model: Any, batch: Batch, settings: LossSettings) -> dict[str, Array]:
        """Return rows of answers with their advantages; see `PolicyOptimization.prepare`."""
        import jax.numpy as jnp

        from t5x_lite.models.policy_losses import group_advantages

        rows = answer_rows(batch)
        states = answer_states(model, rows)
        rows["old_log_probabilities"] = log_probabilities(model, states, rows, settings, self.temperature)
        if self.needs_reference:
            rows["reference_log_probabilities"] = reference_log_probabilities(model, rows, settings, self.temperature)
        advantages = group_advantages(batch["rewards"], scaled=self.average != "length")
        mask = rows["answer_weights"]
        rows["advantages"] = mask * advantages.reshape(-1, 1)
        rows["token_weights"] = mask / self._token_divisor(jnp.sum(mask, axis=1, keepdims=True))
        return rows

    def _token_divisor(self, sizes: Array) -> Array | int:
        """Return what the loss of a token is divided by, before the division by the sum of `term_weights`."""
        if self.average == "answers":
            return sizes
        if self.average == "length":
            return self.answer_len
        return 1

    def loss(self, model: Any, batch: Batch, key: DropoutKey, settings: LossSettings) -> Mapping[str, LossSums]:
        """Return the clipped loss with the KL divergence (eq. 3). The model is a `LanguageModel`."""
        return {"loss": policy_loss(self, model, answer_states(model, batch), batch, settings)}
