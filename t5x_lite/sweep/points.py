"""The points that `sweep fit` fits laws to, from either of two sources: a CSV file, or the runs of a sweep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from t5x_lite.laws.points import Points
from t5x_lite.laws.training_curves import TrainingCurve


@dataclass(frozen=True)
class SweepPoints:
    """Finished runs, the training curves of those that have one, and why each other run was left out, by its name."""

    points: Points
    curves: Sequence[TrainingCurve]
    left_out: Mapping[str, str]


def build_points(runs: Mapping[str, Mapping[str, Any]]) -> Points:
    """Return records of runs, by name, as arrays. Budget and number of experts may be absent."""
    records = list(runs.values())
    return Points(
        parameters=record_values(records, "parameters"),
        tokens=record_values(records, "tokens"),
        flops=record_values(records, "flops"),
        loss=record_values(records, "loss"),
        budget=record_values(records, "budget"),
        experts=record_values(records, "experts", default=1.0),
        names=tuple(runs),
    )


def record_values(records: Sequence[Mapping[str, Any]], key: str, default: float = 0.0) -> Float[np.ndarray, " n"]:
    """Return one value of each record, or the default where it is absent or 0."""
    return np.array([float(record.get(key) or default) for record in records])
