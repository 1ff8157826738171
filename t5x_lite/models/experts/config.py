"""Settings of Mixture-of-Experts layers: their experts, and how tokens get to them."""

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from t5x_lite.models.experts.router import Router
from t5x_lite.models.experts.routers import ROUTERS, Switch
from t5x_lite.models.feedforward.config import EXPERT_FEEDFORWARDS, GLU, MLP
from t5x_lite.schema import Config, Int, OneOf, setting


class Capacity(Config):
    """Every expert takes a fixed number of tokens of a group, in their order; the others skip it."""

    factor: float = setting(
        1.25,
        "capacity of an expert in training, relative to an equal share of the tokens",
        gt=0,
        source="Fedus et al. 2022, §2.2",
    )
    eval_factor: float | None = setting(None, "the same in evaluation and decoding; null takes `factor`", gt=0)
    tokens: Int | None = setting(None, "capacity of each expert in tokens, instead of a factor", unit="tokens", ge=1)
    group: Literal["row", "batch"] = setting("row", "tokens that compete for capacity: those of a row, or of the batch")

    def tokens_per_expert(self, tokens: int, choices: int, experts: int, *, training: bool) -> int:
        """Return the capacity of each expert for a group of `tokens`."""
        factor = self.factor
        if not training and self.eval_factor is not None:
            factor = self.eval_factor
        capacity = self.tokens or math.ceil(factor * tokens * choices / experts)
        return min(capacity, tokens)

    def is_dropless(self, choices: int, experts: int) -> bool:
        """Return True if no expert overflows in evaluation, however many tokens choose it."""
        factor = self.eval_factor or self.factor
        return self.tokens is None and factor * choices >= experts


class Dropless(Config):
    """Every token reaches its experts: by buffers of `buffer` times an equal share, again for what does not fit.

    With `kernel: buffer` each expert has a buffer. The other kernels sort the tokens of a device by expert, and the
    devices of `mesh.expert` exchange these rows (`jax.lax.ragged_all_to_all`), each with a buffer for all its experts.

    `ragged` is XLA's grouped matrix product, which computes every expert for every token where it has no kernel (CPU);
    `megablox` is the Pallas kernel for TPUs. `auto` takes megablox on a TPU with `mesh.tensor: 1`, else buffers.
    """

    buffer: float = setting(1.25, "size of the buffers, relative to an equal share of the tokens", ge=1)
    kernel: Literal["auto", "buffer", "ragged", "megablox"] = setting(
        "auto", "kernel of the product of tokens and experts"
    )


DISPATCHES: dict[str, type[Config]] = {"capacity": Capacity, "dropless": Dropless}


class MoE(Config):
    """Feed-forward layers side by side, of which each token uses a few (Shazeer et al. 2017)."""

    experts: Int = setting(8, "experts of a layer", ge=1)
    router: Annotated[Router, OneOf(ROUTERS)] = setting(Switch(), "router: chooses the experts of each token")
    dispatch: Annotated[Capacity | Dropless, OneOf(DISPATCHES)] = setting(Capacity(), "how tokens reach their experts")
    expert: Annotated[MLP | GLU | None, OneOf(EXPERT_FEEDFORWARDS)] = setting(
        None, "feed-forward of an expert; null takes `model.feedforward`"
    )
    mlp: Int | None = setting(None, "width of an expert; null takes `model.mlp`", ge=1)
    shared: Int = setting(0, "further experts that every token uses", ge=0, source="DeepSeekMoE, Dai 2024, §3.2")
    shared_gate: bool = setting(
        False, "multiply the output of the shared experts by a sigmoid of the token", source="Qwen2-MoE's code"
    )

    def problems(self) -> Iterator[str]:
        """Yield more choices than experts, or a router that a dispatch cannot serve."""
        yield from self.router.expert_problems(self.experts)
        if self.shared_gate and not self.shared:
            yield "moe: shared_gate is for shared experts, of which there are none"
        if self.router.experts_choose_tokens and isinstance(self.dispatch, Dropless):
            yield "moe: expert_choice fills every expert to its capacity, and dispatch=dropless has no capacity"
