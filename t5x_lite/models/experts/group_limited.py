"""Top-k choice among the experts of a few groups, as on a few devices (DeepSeek-V2: Liu et al. 2024, §2.2.2)."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from jaxtyping import Float, Int

from t5x_lite.arrays import Array
from t5x_lite.models.experts.router import Router, highest
from t5x_lite.schema import Int as Integer
from t5x_lite.schema import setting


class GroupLimited(Router):
    """A router that chooses the k experts of the highest scores, in all groups of experts or in the best ones."""

    group_members: ClassVar[int] = 1
    """The best experts of a group whose scores, added up, are the score of the group."""

    k: Integer = setting(2, "experts that a token is sent to", ge=1)
    groups: Integer = setting(1, "equal groups of experts, as on one device each", ge=1, source="DeepSeek-V2, §2.2.2")
    chosen_groups: Integer = setting(1, "groups that the experts of a token are chosen from", ge=1)
    scale: float = setting(1.0, "factor on the weights of a token's experts", gt=0, source="DeepSeek-V2's code")

    @property
    def choices(self) -> int:
        return self.k

    @property
    @abstractmethod
    def is_normalized(self) -> bool:
        """The weights of a token's experts are divided by their sum."""

    @property
    def weights_sum_to_one(self) -> bool:
        """The weights are normalised and not scaled."""
        return self.is_normalized and self.scale == 1

    def expert_problems(self, experts: int) -> Iterator[str]:
        """Yield groups that do not divide the experts, or hold fewer than a token needs."""
        if self.groups == 1 and self.chosen_groups == 1:
            yield from super().expert_problems(experts)
        elif experts % self.groups or self.chosen_groups > self.groups:
            yield f"moe: {experts} experts cannot be cut into {self.groups} groups of which {self.chosen_groups} serve"
        elif self.k > experts // self.groups * self.chosen_groups:
            yield f"moe: {self.chosen_groups} of {self.groups} groups have fewer than {self.k} of {experts} experts"
        elif experts // self.groups < self.group_members:
            yield f"moe: groups of {experts // self.groups} experts, of which the best {self.group_members} count"

    def choose(self, scores: Float[Array, "b l e"]) -> tuple[Float[Array, "b l k"], Int[Array, "b l k"]]:
        """Return the k highest scores within the best groups, and their experts."""
        import jax.numpy as jnp

        if self.groups > 1:
            by_group = scores.reshape(*scores.shape[:-1], self.groups, -1)
            best, _ = highest(by_group, self.group_members)
            _, chosen = highest(best.sum(-1), self.chosen_groups)
            is_chosen = jnp.any(chosen[..., None] == jnp.arange(self.groups), axis=-2)
            scores = jnp.where(is_chosen[..., None], by_group, -jnp.inf).reshape(scores.shape)
        return highest(scores, self.k)
