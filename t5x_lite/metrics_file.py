"""The file `metrics.jsonl` of a run: a JSON object a line, as the train loop writes it. Nothing here imports JAX.

A process that is killed may leave an incomplete last line, and a disk may damage others. Those are left out.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeGuard

from t5x_lite.errors import UserError
from t5x_lite.run_layout import METRICS_FILE

TAIL_BYTES = 2**20
"""Bytes from the end of a metrics file that are searched for its last line."""
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
    """Return the complete lines of a JSONL file that hold objects; none if there is no file."""
    if not path.is_file():
        return []
    return parse_records(path.read_text(encoding="utf-8", errors="replace"))


def parse_records(text: str) -> list[dict[str, Any]]:
    """Return the objects in the lines of a text; lines that are none are left out."""
    records = []
    for line in text.splitlines():
        record = parse_record(line)
        if record is not None:
            records.append(record)
    return records


def parse_record(line: str | bytes) -> dict[str, Any] | None:
    """Return the object in a line; None if the line is damaged."""
    with suppress(RecursionError, ValueError):
        record = json.loads(line)
        if isinstance(record, dict):
            return record
    return None


def step_records(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a `metrics.jsonl` that name their step; none if there is no file."""
    return with_steps(metric_records(path))


def with_steps(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines that name their step."""
    return [record for record in records if is_number(record.get("step"))]


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value from a file is a number that a metric can have."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST_NUMBER


def last_logged_step(path: Path) -> int:
    """Return the step of the last complete line of a metrics file; 0 if there is none."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - TAIL_BYTES, 0))
        lines = file.read().splitlines()
    for line in reversed(lines):
        record = parse_record(line)
        if record is not None and isinstance(record.get("step"), int):
            return int(record["step"])
    return 0


def truncate_metrics(path: Path, step: int) -> float:
    """Shorten a metrics file to its complete lines of steps up to `step`.

    Returns:
        The `seconds_per_step` of the removed lines, added up.
    """
    if not path.is_file():
        return 0.0
    kept_bytes = 0
    lost_seconds = 0.0
    is_lost = False
    with path.open("rb") as file:
        for line in file:
            record = parse_record(line) or {}
            is_incomplete = not line.endswith(b"\n")  # the process was killed while it wrote the line
            is_lost = is_lost or is_incomplete or _number(record, "step") > step
            if is_lost:
                lost_seconds += _number(record, "seconds_per_step")
            else:
                kept_bytes += len(line)  # a damaged line too: the lines after it are not lost with it
    os.truncate(path, kept_bytes)
    return lost_seconds


def _number(record: Mapping[str, Any], key: str) -> float:
    """Return a number of a line; 0 if the line has none."""
    value = record.get(key)
    return value if isinstance(value, int | float) else 0.0
