"""`sweep.jsonl`: a line whenever the state of a run changes. The last line of a run counts."""

import json
from pathlib import Path
from typing import Any

from t5x_lite.metrics_file import metric_records


def read_statuses(path: Path) -> dict[str, dict[str, Any]]:
    """Return the last complete line of each run; none if there is no file. Lines without run or state are left out."""
    statuses = {}
    for record in metric_records(path):
        if isinstance(record.get("run"), str) and isinstance(record.get("state"), str):
            statuses[record["run"]] = record
    return statuses


class StatusLog:
    """The open log of a sweep that is running."""

    def __init__(self, path: Path) -> None:
        self.path = path
        is_incomplete = path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self._file = path.open("a", encoding="utf-8")
        if is_incomplete:
            self._file.write("\n")

    def set(self, run: str, state: str, **details: object) -> None:
        """Write the new state of a run."""
        self._file.write(json.dumps({"run": run, "state": state, **details}) + "\n")
        self._file.flush()

    def status(self, run: str) -> dict[str, Any]:
        """Return the last line of a run; an empty dict if there is none."""
        return read_statuses(self.path).get(run, {})

    def state(self, run: str) -> str:
        """Return the last state of a run, `new` if there is none."""
        return self.status(run).get("state", "new")
