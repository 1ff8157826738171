"""Expert-choice routing: experts choose tokens (Zhou et al. 2022, §3)."""

import math
from typing import ClassVar

from jaxtyping import Bool, Float, Int

from t5x_lite.arrays import Array
from t5x_lite.models.experts.router import Assignment, Router
from t5x_lite.schema import setting


class ExpertChoice(Router):
    """Each expert takes the tokens of a row that it likes best, later ones too."""

    experts_choose_tokens: ClassVar[bool] = True

    balance: float = setting(0.0, "none is needed: experts are equally full", ge=0)
    average: float = setting(2.0, "experts that a token has on average", gt=0, source="Zhou 2022, §3.2: c")

    @property
    def weights_sum_to_one(self) -> bool:
        """Return False: a token may have any number of experts."""
        return False

    @property
    def choices(self) -> int:
        """Return the average number of experts of a token, rounded up."""
        return math.ceil(self.average)

    @property
    def mean_choices(self) -> float:
        """Return the average number of experts of a token."""
        return self.average

    def choose_experts(
        self, logits: Float[Array, "b l e"], bias: Float[Array, "e"] | None, key: Array | None
    ) -> Assignment:
        """Raise: experts choose tokens."""
        raise TypeError("experts choose tokens under expert_choice")

    def choose_tokens(
        self, logits: Float[Array, "b l e"], is_token: Bool[Array, "b l"]
    ) -> tuple[Float[Array, "b e c"], Int[Array, "b e c"], Float[Array, "b l e"]]:
        """Choose the tokens of a row with the highest probability for each expert (§3.2: k = n·c/e)."""
        import jax
        import jax.numpy as jnp

        length, experts = logits.shape[1:]
        capacity = min(math.ceil(self.average * length / experts), length)
        probability = jnp.where(is_token[..., None], jax.nn.softmax(logits, axis=-1), 0)
        weights, tokens = jax.lax.top_k(jnp.swapaxes(probability, 1, 2), capacity)
        return weights, tokens, probability
