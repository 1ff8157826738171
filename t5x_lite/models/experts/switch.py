"""Switch routing: one expert a token (Fedus et al. 2022, §2.1-2.2)."""

from jaxtyping import Float

from t5x_lite.arrays import Array
from t5x_lite.models.experts.router import Assignment, Router, highest
from t5x_lite.schema import setting


class Switch(Router):
    """The most likely expert, its output times its probability."""

    jitter: float = setting(
        0.01, "in training the router's input is multiplied by 1 ± this", ge=0, lt=1, source="Fedus 2022, §2.4"
    )

    @property
    def weights_sum_to_one(self) -> bool:
        """Return False: the weight of the one expert is its probability."""
        return False

    @property
    def choices(self) -> int:
        return 1

    def perturb(self, x: Float[Array, "b l d"], key: Array | None) -> Float[Array, "b l d"]:
        """Multiply the input by noise in training."""
        import jax
        import jax.numpy as jnp

        if key is None or self.jitter == 0:
            return x
        return x * jax.random.uniform(key, x.shape, jnp.float32, 1 - self.jitter, 1 + self.jitter)

    def choose_experts(
        self, logits: Float[Array, "b l e"], bias: Float[Array, "e"] | None, key: Array | None
    ) -> Assignment:
        """Choose the most likely expert."""
        import jax

        probability = jax.nn.softmax(logits, axis=-1)
        weights, experts = highest(probability, 1)
        return Assignment(experts, weights, probability)
