"""Losses on comparisons of two answers, from the log-probabilities of the answers."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from t5x_lite.models.losses import LossSums

PreferenceMethod: TypeAlias = Literal["dpo", "ipo", "orpo"]
LARGEST_LOG_PROBABILITY = -1e-6
"""Upper bound of a mean log-probability whose odds are computed: the odds of certainty are infinite."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PreferenceLoss(LossSums):
    """Sums over comparisons. A comparison counts as correct if the chosen answer has the higher reward.

    Attributes:
        chosen: rewards of chosen answers.
        rejected: rewards of rejected answers.
    """

    chosen: Float[Array, ""]
    rejected: Float[Array, ""]

    def means(self, name: str) -> dict[str, Float[Array, ""]]:
        """Return the metrics of the term, with the mean rewards and their margin."""
        weight = jnp.maximum(self.weight, 1.0)
        chosen = self.chosen / weight
        rejected = self.rejected / weight
        rewards = {"reward_chosen": chosen, "reward_rejected": rejected, "reward_margin": chosen - rejected}
        return {**super().means(name), **rewards}


def answer_rewards(
    method: PreferenceMethod,
    beta: float,
    policy: Float[Array, "b 2"],
    reference: Float[Array, "b 2"],
    sizes: Float[Array, "b 2"],
) -> Float[Array, "b 2"]:
    """Return the reward that a method implies for each answer.

    It is β·log(π(y|x) / π_ref(y|x)) for DPO (Rafailov et al. 2023, §5) and IPO; ORPO has no reference, and its reward
    is λ times the mean log-probability of the answer's tokens.

    Args:
        method: the loss.
        beta: β, τ or λ.
        policy: log-probabilities of the chosen and the rejected answer.
        reference: those by the reference.
        sizes: tokens of the answers.
    """
    if method == "orpo":
        return beta * policy / jnp.maximum(sizes, 1.0)
    return beta * (policy - reference)


def preference_losses(
    method: PreferenceMethod,
    beta: float,
    policy: Float[Array, "b 2"],
    reference: Float[Array, "b 2"],
    sizes: Float[Array, "b 2"],
) -> Float[Array, "b"]:
    """Return the loss of each comparison; see `answer_rewards` for the arguments.

    * DPO (Rafailov et al. 2023, eq. 7): -log σ(β·h), where h = log(π(w)/π_ref(w)) - log(π(l)/π_ref(l)).
    * IPO (Azar et al. 2023, eq. 17): (h - 1/(2τ))².
    * ORPO (Hong et al. 2024, eq. 6 and 7): -log P(w) - λ·log σ(log odds(w) - log odds(l)), where log P is the mean
      log-probability of the tokens (eq. 3) and odds = P/(1 - P).
    """
    log_ratios = policy - reference
    preference = log_ratios[:, 0] - log_ratios[:, 1]
    match method:
        case "dpo":
            return jax.nn.softplus(-beta * preference)
        case "ipo":
            return jnp.square(preference - 1 / (2 * beta))
        case "orpo":
            mean = jnp.where(sizes > 0, policy / jnp.maximum(sizes, 1.0), -1.0)
            bounded = jnp.minimum(mean, LARGEST_LOG_PROBABILITY)
            log_odds = bounded - jnp.log(-jnp.expm1(bounded))
            return -mean[:, 0] + beta * jax.nn.softplus(log_odds[:, 1] - log_odds[:, 0])


def sum_comparisons(
    losses: Float[Array, "b"], rewards: Float[Array, "b 2"], weights: Float[Array, "b"]
) -> PreferenceLoss:
    """Return the weighted sums of the losses and the rewards of comparisons."""
    total = jnp.sum(weights * losses)
    return PreferenceLoss(
        total=total,
        loss=total,
        z_loss=jnp.zeros_like(total),
        correct=jnp.sum(weights * (rewards[:, 0] > rewards[:, 1])),
        weight=jnp.sum(weights),
        chosen=jnp.sum(weights * rewards[:, 0]),
        rejected=jnp.sum(weights * rewards[:, 1]),
    )
