"""The terms of a loss: sums over a batch, which add up over batches, and the metrics that follow from them."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from t5x_lite.models.experts.activity import RouterLoss
from t5x_lite.models.losses import TokenLoss

Batch: TypeAlias = Mapping[str, Array]
"""Features of a batch by name; the first axis of each is the batch."""
LossTerms: TypeAlias = Mapping[str, TokenLoss | RouterLoss]
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
