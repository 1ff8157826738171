"""Metrics of a run: `metrics.jsonl` for programs, and the same for its trackers."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from t5x_lite.files import disk_error
from t5x_lite.run_layout import METRICS_FILE
from t5x_lite.train.trackers.tracker import TrackerWriter

MetricValue: TypeAlias = float | list[float]
"""A number, or one for each expert."""

SIGNIFICANT_DIGITS = 8


class MetricsWriter:
    """Appends to `RUN/metrics.jsonl`, and passes every line on to trackers.

    Args:
        run_dir: the run directory.
        resumed_step: the step that the run resumes from. Lines of later steps, which a lost process has written, and a
            line that was cut short, are removed, so that each step has one line.
        trackers: receive the numbers of each line, one by one. They neither raise nor wait.

    Attributes:
        lost_seconds: `seconds_per_step` of the removed lines, added up.
    """

    def __init__(self, run_dir: Path, resumed_step: int, trackers: Sequence[TrackerWriter] = ()) -> None:
        self.path = run_dir / METRICS_FILE
        self.lost_seconds = truncate_metrics(self.path, resumed_step)
        self._file = self.path.open("a", encoding="utf-8")
        self._trackers = trackers

    def write(self, step: int, metrics: Mapping[str, MetricValue]) -> None:
        """Write one line. A value that is not finite is written as null, because JSON has no such numbers.

        Raises:
            UserError: the disk is full or cannot be written.
        """
        record = {"step": step, **{name: _to_json(value) for name, value in metrics.items()}}
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise disk_error(self.path.parent, error, "the run goes on from its last checkpoint") from error
        scalars = dict(_scalars(metrics))
        for tracker in self._trackers:
            tracker.write(step, scalars)

    def close(self) -> None:
        """Close the file, if it can still be written, and the trackers."""
        with suppress(OSError):
            self._file.close()
        for tracker in self._trackers:
            tracker.close()


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
            record: object = None
            with suppress(RecursionError, ValueError):
                record = json.loads(line)
            is_incomplete = not line.endswith(b"\n")  # the process was killed while it wrote the line
            is_lost = is_lost or is_incomplete or _number(record, "step") > step
            if is_lost:
                lost_seconds += _number(record, "seconds_per_step")
            else:
                kept_bytes += len(line)  # a damaged line too: the lines after it are not lost with it
    os.truncate(path, kept_bytes)
    return lost_seconds


def _number(record: object, key: str) -> float:
    """Return a number of a line; 0 if the line is damaged."""
    value = record.get(key) if isinstance(record, dict) else None
    return value if isinstance(value, int | float) else 0.0


def _to_json(value: MetricValue) -> float | list[float | None] | None:
    if isinstance(value, int):
        return value
    if isinstance(value, list):
        return [_round(item) for item in value]
    return _round(value)


def _round(value: float) -> float | None:
    if not math.isfinite(value):
        return None
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def _scalars(metrics: Mapping[str, MetricValue]) -> Iterator[tuple[str, float]]:
    """Yield every number with its name; the items of a list are numbered."""
    for name, value in metrics.items():
        if isinstance(value, list):
            for number, item in enumerate(value):
                yield f"{name}/{number}", item
        else:
            yield name, value
