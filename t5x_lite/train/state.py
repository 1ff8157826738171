"""TrainState: everything that a step changes, as one pytree."""

from dataclasses import dataclass, field, replace

import jax
from jaxtyping import Array, Int, PyTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Parameters, optimizer state and counts.

    Attributes:
        step: number of batches so far.
        params: parameters that train.
        opt_state: state of the optimizer.
        skipped: updates that were skipped because the loss or a gradient was not finite.
        skipped_in_a_row: length of the newest run of skipped updates.
        frozen: parameters that an adaptation method leaves unchanged. Checkpoints do not hold them.
        masks: of parameters that are pruned, where they are not zero; empty in most runs.
        carry: the state of every recurrent layer after the last batch, which the next one continues
            (`data.order: consecutive`); empty without it.
        teacher: weights of the model that the run distils. Checkpoints do not hold them; empty in most runs.
    """

    step: Int[Array, ""]
    params: PyTree
    opt_state: PyTree
    skipped: Int[Array, ""]
    skipped_in_a_row: Int[Array, ""]
    frozen: PyTree
    masks: PyTree = field(default_factory=dict)
    carry: PyTree = field(default_factory=dict)
    teacher: PyTree = field(default_factory=dict)

    def saved(self) -> "TrainState":
        """Return the part that checkpoints hold."""
        return replace(self, frozen={}, teacher={})
