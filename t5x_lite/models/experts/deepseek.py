"""DeepSeek-V3's routing: sigmoid scores, and a bias that balances the load (DeepSeek-V3, §2.1.2)."""

from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float

from t5x_lite.arrays import Array
from t5x_lite.models.experts.group_limited import GroupLimited
from t5x_lite.models.experts.router import Assignment
from t5x_lite.schema import Int, setting

if TYPE_CHECKING:
    from t5x_lite.models.experts.activity import RouterActivity


class DeepSeek(GroupLimited):
    """The k highest sums of a sigmoid score and a bias that is not part of the weights and moves against the load.

    The balance loss is the sequence-wise one, its f over k so that it is 1 in balance.
    """

    has_bias: ClassVar[bool] = True
    group_members: ClassVar[int] = 2

    k: Int = setting(8, "experts that a token is sent to", ge=1)
    balance: float = setting(1e-4, "factor on the load-balance loss", ge=0, source="§4.2")
    update: float = setting(1e-3, "how far each step moves the bias of an expert", ge=0, source="§4.2")

    @property
    def is_normalized(self) -> bool:
        return True

    @property
    def bias_update_rate(self) -> float | None:
        return self.update

    def choose_experts(
        self, logits: Float[Array, "b l e"], bias: Float[Array, "e"] | None, key: Array | None
    ) -> Assignment:
        """Choose by biased scores; weigh by the scores without the bias."""
        import jax
        import jax.numpy as jnp

        assert bias is not None
        scores = jax.nn.sigmoid(logits)
        _, experts = self.choose(scores + jax.lax.stop_gradient(bias))
        weights = jnp.take_along_axis(scores, experts, axis=-1)
        weights = weights / weights.sum(-1, keepdims=True)
        return Assignment(experts, self.scale * weights, scores / scores.sum(-1, keepdims=True))

    def balance_loss(self, activity: "RouterActivity") -> Float[Array, ""]:
        """Return the sequence-wise loss (DeepSeek-V3, equations 17-20)."""
        from dataclasses import replace

        return super().balance_loss(replace(activity, counted=activity.counted / self.k))
