"""TrainState: everything that a step changes, as one pytree."""

from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Parameters, optimizer state, and counts.

    `params` are those that train, `frozen` those that an adaptation leaves as they were: they are in no checkpoint.
    `step` counts batches, `skipped` those whose update was left out because loss or gradient was not finite, and
    `skipped_in_a_row` the newest run of them.
    """

    step: Int[Array, ""]
    params: Any
    opt_state: Any
    skipped: Int[Array, ""]
    skipped_in_a_row: Int[Array, ""]
    frozen: Any
