"""The order of rows in each stage of a schedule: every source goes on where the stage before left it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from t5x_lite.data.mixture import Interleaving, MixtureOrder
from t5x_lite.data.row_plan import RowPlan
from t5x_lite.data.source_order import SourceOrder, sections_of
from t5x_lite.data.stages import Stage


@dataclass(frozen=True)
class StageRows:
    """The rows of a stage.

    Attributes:
        stage: its steps.
        shares: share of each source in its rows.
        row_plans: rows of each source; None for a source that it does not draw.
    """

    stage: Stage
    shares: Float64[np.ndarray, "sources"]
    row_plans: Sequence[RowPlan | None]


def stage_orders(stages: Sequence[StageRows], seed: int) -> list[MixtureOrder]:
    """Return the order of rows in each stage: row step · batch size + number in the batch, in the steps of the stage.

    A source goes on from stage to stage: the rows that it has given at the first step of a stage follow from the
    schedule alone.

    Args:
        stages: all stages of the run.
        seed: seed of the random orders.
    """
    interleavings = [Interleaving(stage.shares) for stage in stages]
    counts = [_count_drawn(stages, number, interleavings[number]) for number in range(len(stages))]
    source_count = len(stages[0].row_plans)
    sources = [_source_order(stages, counts, source, seed) for source in range(source_count)]
    orders = []
    drawn = [0] * source_count
    for rows, interleaving, stage_counts in zip(stages, interleavings, counts, strict=True):
        first = rows.stage.first_step * rows.stage.batch_size
        orders.append(MixtureOrder(sources, interleaving, first, drawn))
        drawn = [before + count for before, count in zip(drawn, stage_counts, strict=True)]
    return orders


def _count_drawn(stages: Sequence[StageRows], number: int, interleaving: Interleaving) -> list[int]:
    """Return the rows that a stage draws from each source; zeros for the last stage, which has no end."""
    stage = stages[number].stage
    steps = 0
    if number + 1 < len(stages):
        steps = stages[number + 1].stage.first_step - stage.first_step
    return interleaving.counts(steps * stage.batch_size)


def _source_order(
    stages: Sequence[StageRows], counts: Sequence[Sequence[int]], source: int, seed: int
) -> SourceOrder | None:
    row_plans: list[RowPlan] = []
    drawn: list[int] = []
    for rows, stage_counts in zip(stages, counts, strict=True):
        row_plan = rows.row_plans[source]
        if row_plan is not None:
            row_plans.append(row_plan)
            drawn.append(stage_counts[source])
    if not row_plans:
        return None
    return SourceOrder(sections_of(row_plans, drawn), (seed, source))
