"""GShard routing: two experts a token, the second at random (Lepikhin et al. 2021, Algorithm 1)."""

from jaxtyping import Float, Int

from t5x_lite.arrays import Array
from t5x_lite.models.experts.router import Assignment, Router, highest


class GShard(Router):
    """The two most likely experts; in training the second with probability 2 · its weight.

    The balance loss counts first choices alone; a first choice comes before every second one. It is experts² times the
    mean of f·p, as in the published code: 1 in balance.
    """

    @property
    def choices(self) -> int:
        return 2

    def choose_experts(
        self, logits: Float[Array, "b l e"], bias: Float[Array, "e"] | None, key: Array | None
    ) -> Assignment:
        """Choose the two most likely experts; a second one that is not drawn becomes a choice of none."""
        import jax
        import jax.numpy as jnp

        probability = jax.nn.softmax(logits, axis=-1)
        weights, experts = highest(probability, 2)
        weights = weights / weights.sum(-1, keepdims=True)
        if key is not None:
            is_drawn = jax.random.uniform(key, weights.shape[:-1]) < 2 * weights[..., 1]
            no_expert = logits.shape[-1]
            experts = experts.at[..., 1].set(jnp.where(is_drawn, experts[..., 1], no_expert))
        return Assignment(experts, weights, probability)

    def balanced_choices(self, experts: Int[Array, "b l k"]) -> Int[Array, "b l j"]:
        """Return the first choices."""
        return experts[..., :1]
