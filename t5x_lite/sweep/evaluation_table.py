"""The results of `sweep eval` as tables on the terminal."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Column

from t5x_lite.evaluate.example_scores import available_metrics, compute_metric
from t5x_lite.progress import print_table
from t5x_lite.sweep.evaluations import SweepEvaluations, TaskResult
from t5x_lite.sweep.planned_run import PlannedRun, format_size

SHORT_TITLES = {"log_likelihood": "log-lik.", "log_likelihood_per_token": "per token", "probability": "prob."}
"""Titles of columns with which a row fits into 80 characters."""


def print_evaluations(results: SweepEvaluations, runs: Sequence[PlannedRun], labels: Sequence[str]) -> None:
    """Print a table for each task of some evaluations: a row for each run, the smallest first."""
    ordered = sorted(runs, key=lambda run: (run.flops, run.parameters))
    console = Console()
    for task, by_run in results.tasks(labels).items():
        values = {run: task_metrics(result) for run, result in by_run.items()}
        metrics = list(dict.fromkeys(name for row in values.values() for name in row))
        rows = []
        for run in ordered:
            if run.name in values:
                sizes = [format_size(run.parameters), format_size(run.flops)]
                rows.append([run.name, *sizes, *(_format(values[run.name].get(name)) for name in metrics)])
        examples = max((_num_examples(result) for result in by_run.values()), default=0)
        title = f"{task}: {examples} examples" if examples else task
        titles = ["N", "C", *(SHORT_TITLES.get(name, name) for name in metrics)]
        numbers = [Column(column, justify="right", no_wrap=True) for column in titles]
        print_table(console, title, [Column("run", no_wrap=True), *numbers], rows)


def task_metrics(result: TaskResult) -> Mapping[str, float]:
    """Return the metrics of a run on a task."""
    if result.plain_metrics:
        return {name.rpartition("/")[2]: value for name, value in result.plain_metrics.items()}
    return {name: compute_metric(name, result.scores) for name in available_metrics(result.scores)}


def _num_examples(result: TaskResult) -> int:
    return max((len(values) for values in result.scores.values()), default=0)


def _format(value: float | None) -> str:
    return "–" if value is None else f"{value:#.3g}".rstrip(".")
