"""The training loss: the sum of its terms, each a weighted mean over all microbatches of a batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from t5x_lite.models.loss_terms import Batch, LossTerms
from t5x_lite.train.state import TrainState

SplitLossFunction: TypeAlias = Callable[[PyTree, TrainState, Batch, PRNGKeyArray], tuple[LossTerms, PyTree]]
"""Maps trained parameters, the state with what else the loss depends on, a batch and a dropout key to terms of the loss
and the carried states after the batch."""


@dataclass(frozen=True)
class TrainingLoss:
    """The loss that a run minimises: the sum of the means of its terms.

    Attributes:
        objective: name of the objective, for error messages.
        loss_terms: computes the sum of every term over a microbatch.
        term_weights: for every term, the feature of the batch that holds its weights (`Objective.term_weights`), or
            None if the term is a mean over the microbatch already (`activity.ROUTER_TERM_WEIGHTS`,
            `loss_terms.PENALTY_TERM_WEIGHTS`).
    """

    objective: str
    loss_terms: SplitLossFunction
    term_weights: Mapping[str, str | None]

    def normalisers(self, batch: Batch, parts: int) -> dict[str, Float[Array, ""] | int]:
        """Return the divisor of each term: the sum of its weights over the whole batch, or the number of its parts.

        Args:
            batch: the whole batch.
            parts: microbatches, of all replicas that have their own.

        Raises:
            ValueError: the batch lacks a declared feature.
        """
        normalisers: dict[str, Array | int] = {}
        for term, feature in self.term_weights.items():
            if feature is None:
                normalisers[term] = parts
            elif feature in batch:
                normalisers[term] = jnp.maximum(batch[feature].sum(), 1.0)
            else:
                raise ValueError(
                    f"objective {self.objective}: the loss term {term!r} takes its weights from the feature "
                    f"{feature!r}, but the batch has only {', '.join(sorted(batch))}"
                )
        return normalisers

    def mean(self, terms: LossTerms, normalisers: Mapping[str, Float[Array, ""] | int]) -> Float[Array, ""]:
        """Return the sum of the means of all terms.

        Raises:
            ValueError: a term whose weights are not declared.
        """
        means = []
        for name, term in terms.items():
            if name not in normalisers:
                raise ValueError(
                    f"objective {self.objective}: the weights of the loss term {name!r} are not declared; add the "
                    "term to the objective's `term_weights`"
                )
            means.append(term.total / normalisers[name])
        return reduce(add, means)
