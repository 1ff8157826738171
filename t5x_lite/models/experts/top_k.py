"""Top-k routing (Jiang et al. 2024, §2.1)."""

from jaxtyping import Float

from t5x_lite.arrays import Array
from t5x_lite.models.experts.group_limited import GroupLimited
from t5x_lite.models.experts.router import Assignment, BalanceScope
from t5x_lite.schema import setting


class TopK(GroupLimited):
    """The k most likely experts, weighted by their probabilities, which are divided by their sum."""

    over: BalanceScope = setting("model", "see router; Mixtral's code takes all layers together")
    normalize: bool = setting(
        True, "the weights of a token's experts sum to 1; false: they are probabilities", source="DeepSeek-V2"
    )

    bias: bool = setting(False, "a bias of each expert's logit, which gradients train", source="gpt-oss")

    @property
    def has_logit_bias(self) -> bool:
        return self.bias

    @property
    def is_normalized(self) -> bool:
        return self.normalize

    def choose_experts(
        self, logits: Float[Array, "b l e"], bias: Float[Array, "e"] | None, key: Array | None
    ) -> Assignment:
        """Choose the experts of the k highest logits."""
        import jax
        import jax.numpy as jnp

        scores, experts = self.choose(logits)
        if self.normalize:
            weights = jax.nn.softmax(scores, axis=-1)
        else:
            weights = jnp.exp(scores - jax.nn.logsumexp(logits, axis=-1, keepdims=True))
        return Assignment(experts, self.scale * weights, jax.nn.softmax(logits, axis=-1))
