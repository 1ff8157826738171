"""Metrics of a run: `metrics.jsonl` for programs, and the same for its trackers."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

from t5x_lite.files import disk_error
from t5x_lite.metrics_file import truncate_metrics
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
