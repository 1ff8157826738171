"""Lottery tickets: iterative magnitude pruning with rewinding (Frankle & Carbin 2019; Frankle et al. 2020)."""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, UInt32

from t5x_lite.adapt.method import AdaptationMethod, NamedArrays, pattern_problems
from t5x_lite.arrays import Array
from t5x_lite.schema import Int as WholeNumber
from t5x_lite.schema import setting

if TYPE_CHECKING:
    from jax.sharding import Sharding

    from t5x_lite.models.layers import WeightAxes

Scope: TypeAlias = Literal["global", "layer"]
MagnitudeBits: TypeAlias = dict[str, UInt32[np.ndarray, "..."]]
"""For each matrix of each array, the bits of a magnitude in float32, which sort as the magnitudes do."""
MAGNITUDE_BITS = 31
"""Bits of a float32 without its sign."""


class Lottery(AdaptationMethod):
    """One round of pruning: the smallest weights that a run has left become zero, and the others begin again early.

    The first round adapts a dense run, each further round the run of the round before, with the same config. The
    remaining weights, the optimizer and the step are those of the dense run at `rewind_step`; masks are part of the
    state, and a pruned weight stays exactly zero.
    """

    rewinds: ClassVar[bool] = True

    rewind_step: WholeNumber = setting(
        0,
        "step of the dense run that the remaining weights return to, one of its checkpoints; 0: its first weights",
        unit="steps",
        ge=0,
        source="Frankle et al. 2020, §3: 0.1 to 7 % of the steps",
    )
    fraction: float = setting(
        0.2, "share of the remaining weights to prune", gt=0, lt=1, source="Frankle & Carbin 2019, §2"
    )
    scope: Scope = setting("global", "magnitudes are compared in all matrices together, or within each matrix")
    targets: str = setting(
        r"\.stack\.layers\.",
        "regular expression searched in the dotted names of parameters; the matrices among those that match are pruned",
        source="Chen et al. 2020, §3: the layers of BERT, without embeddings and heads",
    )

    def problems(self) -> Iterator[str]:
        yield from pattern_problems("targets", self.targets)

    def prunes(self, name: str, axes: "WeightAxes") -> bool:
        """Return whether a parameter is a matrix whose name matches."""
        return axes.inputs > 0 and re.search(self.targets, name) is not None


def magnitude_masks(
    weights: NamedArrays,
    masks: NamedArrays,
    depths: Mapping[str, int],
    fraction: float,
    scope: Scope,
    counts_sharding: "Sharding | None" = None,
) -> dict[str, Array]:
    """Return masks in which a share of the weights that are left, those of the smallest magnitude, is pruned.

    The threshold is the magnitude of the weight of that rank, found bit by bit from counts, so that no weight is sorted
    or gathered. Weights of just this magnitude are pruned with it.

    Args:
        weights: arrays of matrices by name.
        masks: true where a weight is left.
        depths: number of leading axes of each array that number its matrices.
        fraction: share of the weights that are left, rounded to whole weights.
        scope: `global` compares all weights, `layer` those of each matrix.
        counts_sharding: that of an array which all processes hold; None for one process.
    """
    import jax

    jitted_counts = jax.jit(_count_below, out_shardings=counts_sharding)

    def count_below(limits: MagnitudeBits) -> dict[str, Int[np.ndarray, "..."]]:
        counts = jax.device_get(jitted_counts(weights, masks, limits))
        if scope == "layer":
            return {name: count.astype(np.int64) for name, count in counts.items()}
        total = sum(int(count.sum(dtype=np.int64)) for count in counts.values())
        return {name: np.full(count.shape, total) for name, count in counts.items()}

    stacks = {name: array.shape[: depths[name]] for name, array in weights.items()}
    largest = {name: np.full(stack, 2**32 - 1, np.uint32) for name, stack in stacks.items()}
    pruned = {name: np.rint(fraction * left) for name, left in count_below(largest).items()}
    thresholds: MagnitudeBits = {name: np.zeros(stack, np.uint32) for name, stack in stacks.items()}
    for bit in reversed(range(MAGNITUDE_BITS)):
        limits = {name: threshold | np.uint32(1 << bit) for name, threshold in thresholds.items()}
        below = count_below(limits)
        for name in thresholds:
            thresholds[name] = np.where(below[name] < pruned[name], limits[name], thresholds[name])
    limits = {}
    for name, threshold in thresholds.items():
        limits[name] = np.where(pruned[name] > 0, threshold + np.uint32(1), np.uint32(0))
    return jax.jit(_prune_below)(weights, masks, limits)


def _count_below(weights: NamedArrays, masks: NamedArrays, limits: NamedArrays) -> dict[str, Int[Array, "..."]]:
    """Count the weights that are left in each matrix and whose magnitude is below the limit of the matrix."""
    import jax.numpy as jnp

    counts = {}
    for name, limit in limits.items():
        is_below = masks[name] & (_bits(weights[name]) < _spread(limit, weights[name]))
        counts[name] = is_below.sum(tuple(range(limit.ndim, is_below.ndim)), dtype=jnp.int32)
    return counts


def _prune_below(weights: NamedArrays, masks: NamedArrays, limits: NamedArrays) -> dict[str, Bool[Array, "..."]]:
    """Return the masks without the weights whose magnitude is below the limit of their matrix."""
    new_masks = {}
    for name, limit in limits.items():
        new_masks[name] = masks[name] & (_bits(weights[name]) >= _spread(limit, weights[name]))
    return new_masks


def _bits(weight: Float[Array, "..."]) -> UInt32[Array, "..."]:
    """Return the bits of magnitudes in float32."""
    import jax
    import jax.numpy as jnp

    return jax.lax.bitcast_convert_type(jnp.abs(weight.astype(jnp.float32)), jnp.uint32)


def _spread(limit: UInt32[Array, "..."], weight: Float[Array, "..."]) -> UInt32[Array, "..."]:
    """Give the limits of the matrices in an array as many axes as the array has."""
    return limit.reshape(limit.shape + (1,) * (weight.ndim - limit.ndim))
