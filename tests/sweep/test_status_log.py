"""The log of the states of a sweep's runs, also after a process was killed while it wrote."""

import json
from pathlib import Path

from t5x_lite.sweep.status_log import StatusLog, read_statuses


def test_the_last_complete_line_of_a_run_counts(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    records = [{"run": "a", "state": "running"}, {"run": "a", "state": "done"}, {"run": "b", "state": "failed"}]
    path.write_text("\n".join(map(json.dumps, records)) + '\n{"run": "b", "sta')
    states = {name: status["state"] for name, status in read_statuses(path).items()}
    assert states == {"a": "done", "b": "failed"}


def test_an_incomplete_line_is_ended_before_the_next_is_written(tmp_path: Path) -> None:
    path = tmp_path / "sweep.jsonl"
    path.write_text('{"run": "a", "state": "done"}\n{"run": "b", "st')
    log = StatusLog(path)
    log.set("b", "running")
    assert log.state("a") == "done"
    assert log.state("b") == "running"
