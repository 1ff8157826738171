"""Factorised attention: two sets of keys that together reach every position in two steps (Child et al. 2019, §4.2)."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from t5x_lite.models.attention.kinds.kind import AttentionKind
from t5x_lite.models.attention.kinds.shapes import BooleanArray, Part, PositionArray
from t5x_lite.schema import Int, setting

if TYPE_CHECKING:
    from t5x_lite.models.config import ModelConfig


class Factorised(AttentionKind):
    """A near and a far set of keys.

    `share`: half of the heads takes each set; or all heads of this layer take the same one, for interleaved layers; or
    all heads take the union.
    """

    stride: Int = setting(128, "about the square root of the length", unit="tokens", ge=1)
    share: Literal["heads", "near", "far", "both"] = setting(
        "heads", "half of the heads near, half far; all near; all far; or both at once", source="Child 2019, §4.2"
    )

    @abstractmethod
    def near_and_far(self, *, causal: bool) -> tuple[Part, Part]:
        """Return the near set and the far set, each with a shape that covers it."""

    def allowed(self, query: PositionArray, key: PositionArray) -> BooleanArray:
        """Allow one of the sets, or their union; with `heads`, what any head attends to."""
        near, far = self.near_and_far(causal=True)
        if self.share == "near":
            return near.allowed(query, key)
        if self.share == "far":
            return far.allowed(query, key)
        return near.allowed(query, key) | far.allowed(query, key)

    def parts(self, *, causal: bool) -> tuple[Part, ...]:
        """Return the near set, the far set, or the near set and the rest of the far set."""
        near, far = self.near_and_far(causal=causal)
        if self.share == "near":
            return (near,)
        if self.share == "far":
            return (far,)

        def far_without_near(query: PositionArray, key: PositionArray) -> BooleanArray:
            return far.allowed(query, key) & ~near.allowed(query, key)

        return (near, replace(far, allowed=far_without_near))

    def head_groups(self, heads: int) -> tuple[tuple[AttentionKind, int], ...]:
        """Return half of the heads with each set, where they are shared out."""
        if self.share != "heads":
            return ((self, heads),)
        near = self.model_copy(update={"share": "near"})
        far = self.model_copy(update={"share": "far"})
        return ((near, heads // 2), (far, heads // 2))

    def model_problems(self, model: "ModelConfig") -> Iterator[str]:
        """Yield a number of heads that cannot be halved."""
        if self.share == "heads" and (model.heads % 2 or model.kv_heads % 2):
            yield (
                f"attention with share=heads gives half of the heads to each set: heads {model.heads} and kv_heads "
                f"{model.kv_heads} must be even; or take share=near and share=far in two layers, or share=both"
            )
