"""Training curves: series of a run's metrics, as arrays."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from t5x_lite.metrics_file import is_number


def metric_series(
    lines: Sequence[Mapping[str, Any]], name: str
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Return tokens and values of one metric, from the lines that have it."""
    measured = [line for line in lines if is_number(line.get(name)) and is_number(line.get("tokens"))]
    tokens = np.array([line["tokens"] for line in measured], float)
    values = np.array([line[name] for line in measured], float)
    return tokens, values


def smooth(values: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    """Return a centred running mean, whose window reaches a fiftieth of the points to either side."""
    reach = max(len(values) // 50, 1)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    indices = np.arange(len(values))
    first = np.maximum(indices - reach, 0)
    end = np.minimum(indices + reach + 1, len(values))
    return (sums[end] - sums[first]) / (end - first)


def expert_loads(
    lines: Sequence[Mapping[str, Any]],
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, "points experts"]]:
    """Return tokens and the load of every expert, from the lines that have as many experts as the first."""
    loaded = [line for line in lines if is_number(line.get("tokens")) and _is_load(line.get("expert_load"))]
    loaded = [line for line in loaded if len(line["expert_load"]) == len(loaded[0]["expert_load"])]
    tokens = np.array([line["tokens"] for line in loaded], float)
    return tokens, np.array([line["expert_load"] for line in loaded], float)


def _is_load(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(share, int | float) for share in value)


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """Return the names of folders, with as many of the folders above them as tell them apart."""
    parts = [folder.absolute().parts for folder in folders]
    longest = max(len(part) for part in parts)
    for depth in range(1, longest + 1):
        names = ["/".join(part[-depth:]).lstrip("/") for part in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names
