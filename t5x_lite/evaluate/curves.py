"""Training curves: the lines of a run's `metrics.jsonl`, as arrays."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from t5x_lite.errors import UserError
from t5x_lite.run_layout import METRICS_FILE

LARGEST_NUMBER = 1e300
"""Numbers of a file beyond it are damage: no metric comes near."""


def read_metrics(run: Path, *, empty: bool = False) -> list[dict[str, Any]]:
    """Read `RUN/metrics.jsonl`.

    Args:
        run: the run directory.
        empty: accept a file without a complete line.

    Raises:
        UserError: there is no such file, or it has no complete line and must have some.
    """
    path = run / METRICS_FILE
    if not path.is_file():
        raise UserError(f"{run}: has no metrics.jsonl; is it a run directory?")
    records = step_records(path)
    if not records and not empty:
        problem = "is damaged: none of its lines has a step" if path.stat().st_size else "is empty; train the run first"
        raise UserError(f"{path}: {problem}")
    return records


def metric_records(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a JSONL file; none if there is no file.

    A process that is killed may leave an incomplete last line. Lines that are no objects are left out too.
    """
    if not path.is_file():
        return []
    return parse_records(path.read_text(encoding="utf-8", errors="replace"))


def parse_records(text: str) -> list[dict[str, Any]]:
    """Return the objects in the lines of a text; lines that are none are left out."""
    records = []
    for line in text.splitlines():
        record = None
        with suppress(RecursionError, ValueError):
            record = json.loads(line)
        if isinstance(record, dict):
            records.append(record)
    return records


def step_records(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a `metrics.jsonl` that name their step; none if there is no file."""
    return [record for record in metric_records(path) if is_number(record.get("step"))]


def is_number(value: object) -> bool:
    """Return whether a value from a file is a number that a metric can have."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST_NUMBER


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
