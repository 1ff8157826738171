"""The terms of a loss: sums over a batch, which add up over batches, and the metrics that follow from them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from t5x_lite.models.experts.activity import RouterLoss
from t5x_lite.models.losses import LossSums

PENALTY_TERM = "penalty"
"""Name of the term of a loss that depends on weights alone."""
PENALTY_TERM_WEIGHTS: Mapping[str, None] = {PENALTY_TERM: None}
"""The entry of `TrainingLoss.term_weights` for it: it is the same in every microbatch."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Penalty:
    """The term of a loss that an adaptation method adds for its weights. Those of parts of a batch add up.

    Attributes:
        total: sum over the parts.
        weight: number of parts that were added.
    """

    total: Float[Array, ""]
    weight: Float[Array, ""]

    def means(self, name: str) -> dict[str, Array]:
        """Return the metric, which has the name of the term."""
        return {name: self.total / self.weight}


Batch: TypeAlias = Mapping[str, Array]
"""Features of a batch by name; the first axis of each is the batch."""
LossTerms: TypeAlias = Mapping[str, LossSums | RouterLoss | Penalty]
"""Sums over a batch by term of the loss."""
LossFunction: TypeAlias = Callable[[PyTree, Batch, PRNGKeyArray | None], LossTerms]
"""Maps parameters, a batch and a dropout key (None in evaluation) to the terms of the loss."""


def add_loss_terms(terms: LossTerms, batch_terms: LossTerms) -> LossTerms:
    """Return the sums over two sets of batches. `terms` may be empty."""
    if not terms:
        return batch_terms
    return jax.tree.map(jnp.add, terms, batch_terms)


def loss_metrics(terms: LossTerms) -> dict[str, Array]:
    """Return the metrics of all terms: their means, and what routers report."""
    metrics: dict[str, Array] = {}
    for name, term in terms.items():
        metrics.update(term.means(name))
    return metrics


def are_finite(terms: LossTerms) -> Bool[Array, ""]:
    """Return whether the sums of all terms are finite."""
    is_finite = jnp.array(True)
    for term in terms.values():
        is_finite = jnp.logical_and(is_finite, jnp.isfinite(term.total))
    return is_finite
