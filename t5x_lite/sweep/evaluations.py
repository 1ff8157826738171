"""`SWEEP/eval/results.json`: which runs of a sweep were evaluated, and where the results are."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ValidationError

from t5x_lite.errors import UserError
from t5x_lite.evaluate.cached_evaluation import CachedResult, read_cached
from t5x_lite.evaluate.example_scores import ExampleScores
from t5x_lite.files import read_json_object, write_file
from t5x_lite.schema import first_problem
from t5x_lite.storage import file_exists
from t5x_lite.sweep.planned_run import PlannedRun

FILE = "eval/results.json"
PLAIN_METRICS = {
    "eval/loss": "validation loss (nats per target)",
    "eval/text/loss": "loss of the text (nats per token)",
}
"""Metrics of evaluators without scores of single examples that are drawn: lower is better."""


class SweepEvaluations(BaseModel, strict=True, extra="forbid"):
    """By label of the evaluation and name of the run, the file in the run's cache."""

    results: dict[str, dict[str, str]] = {}

    def updated(self, files: Mapping[str, Mapping[str, str]], runs: Sequence[PlannedRun]) -> "SweepEvaluations":
        """Return these evaluations with the files of some runs, by run and label, in place of older ones."""
        results = {label: dict(by_run) for label, by_run in self.results.items()}
        for label in {label for run in runs for label in files[run.name]}:
            results.pop(label, None)  # the newest evaluation comes last, and counts
            results[label] = {run.name: files[run.name][label] for run in runs if label in files[run.name]}
        return SweepEvaluations(results=results)

    def metrics(self, runs: Sequence[PlannedRun], labels: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return all metrics of each run."""
        metrics: dict[str, dict[str, float]] = {run.name: {} for run in runs}
        for label in labels:
            for run, name in self.results[label].items():
                if run in metrics:
                    metrics[run].update(_read(name).metrics)
        return metrics

    def tasks(self, labels: Sequence[str] | None = None) -> dict[str, dict[str, "TaskResult"]]:
        """Return the results by task and run, of some evaluations or of all; of two with a task the last one."""
        tasks: dict[str, dict[str, TaskResult]] = {}
        for label in self.results if labels is None else labels:
            tasks.update(self._tasks_of(label))
        return tasks

    def _tasks_of(self, label: str) -> dict[str, dict[str, "TaskResult"]]:
        tasks: dict[str, dict[str, TaskResult]] = {}
        for run, name in self.results[label].items():
            result = _read(name)
            for task in result.examples:
                tasks.setdefault(task, {})[run] = TaskResult(result.example_scores(task), {})
            plain = {metric: value for metric, value in result.metrics.items() if metric in PLAIN_METRICS}
            if plain:
                tasks.setdefault(label.lower(), {})[run] = TaskResult({}, plain)
        return tasks


@dataclass(frozen=True)
class TaskResult:
    """The result of a run on a task: the scores of its examples, or metrics of evaluators that have none."""

    scores: ExampleScores
    plain_metrics: Mapping[str, float]


def read_evaluations(folder: Path) -> SweepEvaluations:
    """Read the evaluations of a sweep; none if there is no file. Results that were deleted are left out.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return SweepEvaluations()
    try:
        stored = SweepEvaluations.model_validate(read_json_object(path))
    except ValidationError as error:
        raise UserError(f"{path}: {first_problem(error)}; delete it, and run sweep eval again") from None
    results = {}
    for label, by_run in stored.results.items():
        results[label] = {run: name for run, name in by_run.items() if file_exists(name)}
    return SweepEvaluations(results=results)


def write_evaluations(folder: Path, evaluations: SweepEvaluations) -> Path:
    """Write the evaluations of a sweep.

    Raises:
        UserError: the file cannot be written.
    """
    return write_file(folder / FILE, json.dumps(evaluations.model_dump(), indent=1) + "\n")


@cache
def _read(name: str) -> CachedResult:
    return read_cached(name)
