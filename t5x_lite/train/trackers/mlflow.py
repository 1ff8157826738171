"""MLflow (extra `mlflow`)."""

import os
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from t5x_lite.extras import require_library
from t5x_lite.schema import setting
from t5x_lite.train.trackers.tracker import TrackedRun, Tracker, TrackerWriter

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

LARGEST_BATCH = 100
"""Parameters that MLflow takes in one request."""
LONGEST_VALUE = 6000
"""Characters of a parameter's value that MLflow stores."""
IDENTIFIER_TAG = "t5x_lite.run"
"""Tag by which a resumed run finds its run in MLflow."""
REFUSED = re.compile(r"[^\w\-. /:]")
"""Characters that MLflow refuses in names of metrics."""


class MLflow(Tracker):
    """MLflow: a server, a database, or a folder."""

    tracking_uri: str | None = setting(
        None, "server or store; a folder is file:/PATH; null takes MLFLOW_TRACKING_URI, or the folder mlruns"
    )
    experiment: str = setting("t5x_lite", "experiment of the run, created if it does not exist", min_length=1)

    def check(self) -> None:
        """Check that the library is installed."""
        require_library("train.trackers: mlflow", "mlflow", "mlflow")

    def open(self, run: TrackedRun) -> TrackerWriter:
        """Open the run: the one that has its identifier as a tag, or a new one with all settings as parameters."""
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 refuses folders without it
        from mlflow.tracking import MlflowClient

        client = MlflowClient(tracking_uri=self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "mlruns"))
        experiment = client.get_experiment_by_name(self.experiment)
        if experiment is None:
            experiment_id = client.create_experiment(self.experiment)
        else:
            experiment_id = experiment.experiment_id
        earlier = client.search_runs([experiment_id], f"tags.`{IDENTIFIER_TAG}` = '{run.identifier}'", max_results=1)
        if earlier:
            run_id = earlier[0].info.run_id
            client.update_run(run_id, status="RUNNING")
        else:
            tags = {IDENTIFIER_TAG: run.identifier}
            run_id = client.create_run(experiment_id, run_name=run.name, tags=tags).info.run_id
            _log_settings(client, run_id, run.settings)
        return MLflowRun(client, run_id, run.tracked_step)


def _log_settings(client: "MlflowClient", run_id: str, settings: Mapping[str, object]) -> None:
    from mlflow.entities import Param

    params = [Param(key, str(value)[:LONGEST_VALUE]) for key, value in settings.items()]
    for start in range(0, len(params), LARGEST_BATCH):
        client.log_batch(run_id, params=params[start : start + LARGEST_BATCH])


class MLflowRun:
    """An open run of MLflow. It keeps every value that it is sent, so steps that it already has are left out."""

    def __init__(self, client: "MlflowClient", run_id: str, tracked_step: int) -> None:
        self._client = client
        self._run_id = run_id
        self._tracked_step = tracked_step

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log the metrics of a step in one request."""
        if step <= self._tracked_step:
            return
        from mlflow.entities import Metric

        milliseconds = int(time.time() * 1000)
        metrics = [Metric(REFUSED.sub("_", name), value, milliseconds, step) for name, value in scalars.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self) -> None:
        """Mark the run as finished; a resumed one is marked as running again."""
        self._client.set_terminated(self._run_id)
