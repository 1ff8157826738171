"""Top-k routing (Jiang et al. 2024, §2.1)."""

from jaxtyping import Float

from t5x_lite.arrays import Array
from t5x_lite.models.experts.router import Assignment, BalanceScope, Router, highest
from t5x_lite.schema import Int, setting


class TopK(Router):
    """The k likeliest experts, their softmax taken among themselves."""

    k: Int = setting(2, "experts that a token is sent to", ge=1)
    over: BalanceScope = setting("model", "see router; Mixtral's code takes all layers together")

    @property
    def choices(self) -> int:
        """Return `k`."""
        return self.k

    def choose_experts(
        self, logits: Float[Array, "b l e"], bias: Float[Array, "e"] | None, key: Array | None
    ) -> Assignment:
        """Choose the experts of the k highest logits."""
        import jax

        scores, experts = highest(logits, self.k)
        return Assignment(experts, jax.nn.softmax(scores, axis=-1), jax.nn.softmax(logits, axis=-1))
