"""Files of the run directories of a sweep, which are on a local disk or in a bucket."""

from pathlib import Path
from typing import Any

from t5x_lite import storage
from t5x_lite.local_copies import local_file
from t5x_lite.metrics_file import step_records
from t5x_lite.run_layout import CONFIG_FILE, DIVERGED_FILE, METRICS_FILE


def read_steps(run_dir: str) -> list[dict[str, Any]]:
    """Return the complete lines of a run's metrics that name their step; none if there is no such file.

    Raises:
        UserError: the bucket cannot be read.
    """
    return step_records(local_file(storage.join(run_dir, METRICS_FILE)))


def run_exists(run_dir: str) -> bool:
    """Return whether a run has begun.

    Raises:
        UserError: the bucket cannot be read.
    """
    if storage.is_remote(run_dir):
        return storage.file_exists(storage.join(run_dir, CONFIG_FILE))
    return Path(run_dir).is_dir()


def has_diverged(run_dir: str) -> bool:
    """Return whether a run has ended because its loss diverged.

    Raises:
        UserError: the bucket cannot be read.
    """
    return storage.file_exists(storage.join(run_dir, DIVERGED_FILE))
