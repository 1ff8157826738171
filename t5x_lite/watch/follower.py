"""Read the new lines of a run's `metrics.jsonl` while the run writes it, on a disk or in a bucket."""

from typing import Any

from t5x_lite import storage
from t5x_lite.metrics_file import parse_records, with_steps
from t5x_lite.run_layout import METRICS_FILE

OVERLAP = 256
"""Bytes before the new ones that are read again: they differ if the file was shortened and written anew."""


class MetricsFollower:
    """Reads what is new in a `metrics.jsonl`.

    A run that is resumed removes the lines of the steps that it repeats. Then all lines are read again.

    Args:
        run: the run directory, local or in an object store.

    Attributes:
        records: the complete lines so far that name their step.
    """

    def __init__(self, run: str) -> None:
        self._name = storage.join(run, METRICS_FILE)
        self._read_bytes = 0
        self._tail = b""
        self.records: list[dict[str, Any]] = []

    def update(self) -> bool:
        """Read the complete lines that are new.

        Returns:
            There are some.

        Raises:
            UserError: the file cannot be read.
        """
        if not storage.file_exists(self._name):
            return self._restart()
        content = self._read_new_bytes()
        if content is None:
            self._restart()
            content = self._read_new_bytes() or b""
        complete = content[: content.rfind(b"\n") + 1]
        if not complete:
            return False
        self._read_bytes += len(complete)
        self._tail = (self._tail + complete)[-OVERLAP:]
        new_records = parse_records(complete.decode("utf-8", errors="replace"))
        self.records += with_steps(new_records)
        return True

    def _restart(self) -> bool:
        """Forget all lines. Return whether there were some."""
        had_records = bool(self.records)
        self._read_bytes = 0
        self._tail = b""
        self.records = []
        return had_records

    def _read_new_bytes(self) -> bytes | None:
        """Return the bytes after those that were read; None if those have changed."""
        with storage.explained(self._name, "read"), storage.open_bytes(self._name) as file:
            file.seek(self._read_bytes - len(self._tail))
            content = file.read()
        if not content.startswith(self._tail):
            return None
        return content[len(self._tail) :]
