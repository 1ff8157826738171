"""Losses and advantages of policy optimisation, from log-probabilities of sampled tokens (letter t)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from t5x_lite.models.losses import LossSums

SMALLEST_DEVIATION = 1e-4
"""Added to the standard deviation of a group's rewards, which may be equal; the value of TRL."""
SMALLEST_VARIANCE = 1e-8
"""Added to the variance of the advantages that `whiten` divides by (Ziegler et al. 2019, code: `utils.whiten`)."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PolicyLoss(LossSums):
    """Sums over sampled tokens. `loss` and `weight` are as the objective averages; the other sums are over tokens.

    Attributes:
        kl: estimates of the KL divergence to the reference; None without a reference.
        entropy: entropies of the policy, in nats.
        clipped: tokens whose ratio is clipped, so that they have no gradient of the policy.
        tokens: number of tokens.
    """

    kl: Float[Array, ""] | None
    entropy: Float[Array, ""]
    clipped: Float[Array, ""]
    tokens: Float[Array, ""]

    def means(self, name: str) -> dict[str, Float[Array, ""]]:
        """Return the metrics of the term."""
        tokens = jnp.maximum(self.tokens, 1.0)
        metrics = {
            "loss": self.loss / jnp.maximum(self.weight, 1.0),
            "entropy": self.entropy / tokens,
            "clipped_share": self.clipped / tokens,
        }
        if self.kl is not None:
            metrics["kl"] = self.kl / tokens
        return metrics


def clipped_policy_losses(
    log_probabilities: Float[Array, "n t"],
    old_log_probabilities: Float[Array, "n t"],
    advantages: Float[Array, "n t"],
    clip_low: float,
    clip_high: float,
) -> tuple[Float[Array, "n t"], Bool[Array, "n t"]]:
    """Return -min(ρA, clip(ρ, 1 - ε_low, 1 + ε_high)·A) of each token, and whether the clipped side is the smaller.

    ρ is the ratio of the token's probability to that at the time of sampling (Schulman et al. 2017, eq. 7; with two ε:
    Yu et al. 2025, eq. 10).
    """
    ratio = jnp.exp(log_probabilities - old_log_probabilities)
    clipped_ratio = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
    objective = ratio * advantages
    clipped_objective = clipped_ratio * advantages
    return -jnp.minimum(objective, clipped_objective), clipped_objective < objective


def kl_estimates(
    log_probabilities: Float[Array, "n t"], reference_log_probabilities: Float[Array, "n t"]
) -> Float[Array, "n t"]:
    """Return π_ref/π - log(π_ref/π) - 1 of each token, which is never negative (DeepSeekMath, Shao et al. 2024, eq. 4).

    Its mean over tokens sampled from π is the KL divergence of π from π_ref.
    """
    log_ratio = reference_log_probabilities - log_probabilities
    return jnp.exp(log_ratio) - log_ratio - 1


def clipped_value_losses(
    values: Float[Array, "n t"], old_values: Float[Array, "n t"], returns: Float[Array, "n t"], clip: float
) -> Float[Array, "n t"]:
    """Return ½·max((V - R)², (V_clipped - R)²) of each token, where V_clipped is within `clip` of the old value.

    Source: the code of Ziegler et al. 2019, after that of Schulman et al. 2017.
    """
    clipped_values = jnp.clip(values, old_values - clip, old_values + clip)
    return 0.5 * jnp.maximum(jnp.square(values - returns), jnp.square(clipped_values - returns))


def group_advantages(rewards: Float[Array, "b group"], *, scaled: bool) -> Float[Array, "b group"]:
    """Return each reward minus the mean of its group, divided by the group's standard deviation if `scaled`.

    Source: DeepSeekMath, Shao et al. 2024, §4.1.2; without the division: Dr. GRPO, Liu et al. 2025, §3.2. The deviation
    is that of a sample, as in TRL.
    """
    advantages = rewards - rewards.mean(1, keepdims=True)
    if not scaled:
        return advantages
    return advantages / (rewards.std(1, keepdims=True, ddof=1) + SMALLEST_DEVIATION)


def token_rewards(
    rewards: Float[Array, "n"],
    log_probabilities: Float[Array, "n t"],
    reference_log_probabilities: Float[Array, "n t"],
    weights: Float[Array, "n t"],
    kl_weight: float,
) -> Float[Array, "n t"]:
    """Return -β·log(π/π_ref) of each token, plus the answer's reward at its last token (Stiennon et al. 2020, §3.4).

    Args:
        rewards: of the answers.
        log_probabilities: of the tokens when they were sampled.
        reference_log_probabilities: those by the reference.
        weights: 1 for the tokens of the answer, which come first, and 0 for padding.
        kl_weight: β.
    """
    penalties = kl_weight * (log_probabilities - reference_log_probabilities)
    next_weights = jnp.pad(weights[:, 1:], ((0, 0), (0, 1)))
    is_last = weights - next_weights
    return is_last * rewards[:, None] - weights * penalties


def generalised_advantages(
    rewards: Float[Array, "n t"],
    values: Float[Array, "n t"],
    weights: Float[Array, "n t"],
    discount: float,
    decay: float,
) -> tuple[Float[Array, "n t"], Float[Array, "n t"]]:
    """Return advantages, and returns, the advantages plus the values; both 0 in the padding.

    A_t = δ_t + γλ·A_{t+1} with δ_t = r_t + γ·V_{t+1} - V_t, and V = 0 after the last token (Schulman et al. 2016,
    eq. 16; Schulman et al. 2017, eq. 11 and 12).

    Args:
        rewards: of tokens.
        values: predicted before each token.
        weights: 1 for tokens, 0 for padding.
        discount: γ.
        decay: λ.
    """
    values = values * weights
    next_values = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    errors = (rewards + discount * next_values - values) * weights

    def add_error(
        advantage: Float[Array, "n"], error: Float[Array, "n"]
    ) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
        advantage = error + discount * decay * advantage
        return advantage, advantage

    _, advantages = jax.lax.scan(add_error, jnp.zeros_like(errors[:, 0]), errors.T, reverse=True)
    advantages = advantages.T * weights
    return advantages, advantages + values


def whiten(advantages: Float[Array, "n t"], weights: Float[Array, "n t"]) -> Float[Array, "n t"]:
    """Return advantages with mean 0 and variance 1 over all tokens (Ziegler et al. 2019, code); 0 in the padding."""
    count = jnp.maximum(weights.sum(), 1.0)
    mean = jnp.sum(advantages * weights) / count
    variance = jnp.sum(weights * jnp.square(advantages - mean)) / count
    return weights * (advantages - mean) * jax.lax.rsqrt(variance + SMALLEST_VARIANCE)
