"""The curves that a run leaves behind: lines of `metrics.jsonl`, as arrays."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from t5x_lite.errors import UserError


def read_metrics(run: Path, *, empty: bool = False) -> list[dict[str, Any]]:
    """The lines of `RUN/metrics.jsonl`; one that a kill has torn is left out. There may be none where `empty` says so.

    Raises:
        UserError: there are none.
    """
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{run}: has no metrics.jsonl; is it a run directory?")
    found = metric_records(path)
    if not found and not empty:
        raise UserError(f"{path}: is empty; train the run first")
    return found


def metric_records(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; none where there is no file."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def metric_series(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and values of one metric, where it was measured."""
    have = [(line["tokens"], line[name]) for line in lines if line.get(name) is not None]
    return (*np.array(have, float).T,) if have else (np.array([]), np.array([]))


def smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a fiftieth of the values, centred."""
    width = max(len(values) // 50, 1)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    places = np.arange(len(values))
    first, last = np.maximum(places - width, 0), np.minimum(places + width + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)
