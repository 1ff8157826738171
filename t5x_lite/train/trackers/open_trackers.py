"""Open the metrics of a run, with the trackers that its config names."""

from collections.abc import Callable
from pathlib import Path

import jax

from t5x_lite import schema
from t5x_lite.config import RunConfig
from t5x_lite.train.metrics import MetricsWriter
from t5x_lite.train.trackers import TRACKERS
from t5x_lite.train.trackers.background import BackgroundWriter
from t5x_lite.train.trackers.tracked_steps import open_tracked_state
from t5x_lite.train.trackers.tracker import TrackedRun, TrackerWriter


def open_metrics(
    config: RunConfig, run_dir: Path, resumed_step: int, report: Callable[[str], None]
) -> MetricsWriter | None:
    """Open the metrics of a run at a step. Only the first process writes them; it is None in the others.

    Args:
        config: the run's config.
        run_dir: the run directory, or its local copy.
        resumed_step: the step that the run resumes from; lines of later steps are removed.
        report: prints a line.
    """
    if jax.process_index() > 0:
        return None
    return MetricsWriter(run_dir, resumed_step, open_trackers(config, run_dir, resumed_step, report))


def open_trackers(
    config: RunConfig, run_dir: Path, resumed_step: int, report: Callable[[str], None]
) -> list[TrackerWriter]:
    """Open the trackers of a run, each in a thread. Called before the run's metrics are shortened to a step.

    Args:
        config: the run's config.
        run_dir: the run directory, or its local copy.
        resumed_step: the step that the run resumes from.
        report: prints a line.
    """
    trackers = config.train.trackers
    if not trackers:
        return []
    identifier, tracked_step = open_tracked_state(run_dir)
    name = Path(str(config.run_dir)).name
    run = TrackedRun(run_dir, name, identifier, schema.flatten(config), resumed_step, tracked_step)
    names = {tracker_class: name for name, tracker_class in TRACKERS.items()}
    return [BackgroundWriter(names[type(tracker)], tracker, run, report) for tracker in trackers]
