"""The tasks of a sweep over its sizes: values with intervals, trends, and what sharp metrics hide."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from t5x_lite.evaluate.example_scores import EXAMPLE_METRICS, available_metrics, compute_metric, resample_metric
from t5x_lite.sweep.evaluations import PLAIN_METRICS, TaskResult
from t5x_lite.sweep.planned_run import PlannedRun
from t5x_lite.sweep.trends import TAILS, Trend, adjust_holm, count_flat, falls, fit_trend

DRAWS = 1000
"""Bootstrap samples of the examples."""
SEED = 0
AXES = {"flops": "FLOPs", "parameters": "parameters N"}
"""Sizes that a metric is drawn over: attributes of a run, and their titles."""
FEWEST_FLAT = 3
"""Fewest sizes with the same exact match before a note says that it hides something."""


@dataclass(frozen=True)
class AbilityCurve:
    """A metric of a task in the runs of a sweep.

    Attributes:
        task: the task.
        metric: the last part of the metric's name.
        title: the metric for people.
        sign: 1 if higher is better, -1 if lower is better.
        runs: the runs.
        values: of each run.
        samples: bootstrap samples of each value; None without examples.
        examples: number of examples.
        trends: by axis; the axes on which there is a trend to speak of.
    """

    task: str
    metric: str
    title: str
    sign: int
    runs: Sequence[PlannedRun]
    values: Float[np.ndarray, " runs"]
    samples: Float[np.ndarray, "draws runs"] | None
    examples: int
    trends: Mapping[str, Trend]

    def sizes(self, axis: str) -> Float[np.ndarray, " runs"]:
        """Return N or C of each run."""
        return run_sizes(self.runs, axis)

    def intervals(self) -> Float[np.ndarray, "2 runs"] | None:
        """Return the lower and the upper end of the interval of each value; None without examples."""
        if self.samples is None:
            return None
        return np.quantile(self.samples, TAILS, axis=0)


@dataclass(frozen=True)
class Abilities:
    """All curves of a sweep.

    Attributes:
        curves: by task and metric.
        inverse: the corrected p of curves that fall significantly, by task, metric and axis.
        notes: for tasks whose exact match hides what the likelihood shows, a sentence.
    """

    curves: Mapping[str, Mapping[str, AbilityCurve]]
    inverse: Mapping[tuple[str, str, str], float]
    notes: Mapping[str, str]


def build_abilities(tasks: Mapping[str, Mapping[str, TaskResult]], runs: Sequence[PlannedRun]) -> Abilities:
    """Return the curves of tasks with their trends.

    Args:
        tasks: results by task and name of the run.
        runs: the runs.
    """
    curves = {}
    for task, by_run in tasks.items():
        present = [run for run in runs if run.name in by_run]
        by_metric = {curve.metric: curve for curve in _task_curves(task, by_run, present)}
        if by_metric:
            curves[task] = by_metric
    notes = {}
    for task, by_metric in curves.items():
        note = _describe_sharpness(by_metric)
        if note:
            notes[task] = note
    return Abilities(curves, _find_inverse(curves), notes)


def _task_curves(task: str, by_run: Mapping[str, TaskResult], runs: Sequence[PlannedRun]) -> Iterator[AbilityCurve]:
    results = [by_run[run.name] for run in runs]
    for name, plain_title in PLAIN_METRICS.items():
        if results and all(name in result.plain_metrics for result in results):
            values = np.array([result.plain_metrics[name] for result in results])
            last_part = name.rpartition("/")[2]
            yield AbilityCurve(
                task, last_part, plain_title, -1, runs, values, None, 0, _fit_trends(runs, values, None, -1)
            )
    shared = [set(available_metrics(result.scores)) for result in results]
    for name, metric in EXAMPLE_METRICS.items():
        if not shared or name not in set.intersection(*shared):
            continue
        values = np.array([compute_metric(name, result.scores) for result in results])
        samples = np.stack([resample_metric(name, result.scores, DRAWS, SEED) for result in results], axis=1)
        examples = len(results[0].scores[metric.scores[0]])
        is_exact_match = name == "accuracy" and "brier" not in results[0].scores
        title = "exact match" if is_exact_match else metric.title
        trends = _fit_trends(runs, values, samples, metric.sign)
        yield AbilityCurve(task, name, title, metric.sign, runs, values, samples, examples, trends)


def _fit_trends(
    runs: Sequence[PlannedRun],
    values: Float[np.ndarray, " runs"],
    samples: Float[np.ndarray, "draws runs"] | None,
    sign: int,
) -> dict[str, Trend]:
    trends = {}
    for axis in AXES:
        trend = fit_trend(run_sizes(runs, axis), values, samples, sign)
        if trend is not None:
            trends[axis] = trend
    return trends


def _find_inverse(curves: Mapping[str, Mapping[str, AbilityCurve]]) -> dict[tuple[str, str, str], float]:
    """Return the corrected p of the curves that fall significantly."""
    keys = []
    p_values = []
    for task, by_metric in curves.items():
        for metric, curve in by_metric.items():
            for axis, trend in curve.trends.items():
                keys.append((task, metric, axis))
                p_values.append(trend.p_fall)
    inverse = {}
    for (task, metric, axis), adjusted in zip(keys, adjust_holm(p_values), strict=True):
        curve = curves[task][metric]
        if falls(curve.trends[axis], adjusted, curve.sign):
            inverse[task, metric, axis] = adjusted
    return inverse


def _describe_sharpness(curves: Mapping[str, AbilityCurve]) -> str:
    """Return what exact match hides that the log-likelihood per token shows over C.

    Exact match looks sudden if it is flat over the smaller half of the sizes, and above that at the largest (as Wei et
    al. 2022, §2, define an emergent ability). It is an artefact of the metric if the likelihood rises over the flat
    part (Schaeffer et al. 2023, §2).
    """
    accuracy = curves.get("accuracy")
    likelihood = curves.get("log_likelihood_per_token")
    if accuracy is None or likelihood is None or "brier" in curves:
        return ""
    sizes, exact = samples_by_size(accuracy, "flops")
    num_flat = count_flat(exact)
    likelihood_of_flat = samples_by_size(likelihood, "flops")[1][:, [0, num_flat - 1]]
    likelihood_rises = count_flat(likelihood_of_flat) == 1
    if num_flat < max(FEWEST_FLAT, len(sizes) / 2) or not likelihood_rises:
        return ""
    if num_flat < len(sizes):
        return (
            f"exact match is flat up to C = {sizes[num_flat - 1]:.3g} and looks sudden; the log-likelihood per token "
            "rises from the start: an artefact of the metric"
        )
    return (
        f"exact match (at most {accuracy.values.max():.2%}, in steps of {1 / accuracy.examples:.2%}) does not show the "
        "rise of the log-likelihood per token"
    )


def run_sizes(runs: Sequence[PlannedRun], axis: str) -> Float[np.ndarray, " runs"]:
    """Return N or C of each run. Runs of the same budget have one C, although their steps are whole numbers."""
    sizes = []
    for run in runs:
        has_budget = axis == "flops" and run.budget > 0
        sizes.append(run.budget if has_budget else getattr(run, axis))
    return np.array(sizes, np.float64)


def samples_by_size(
    curve: AbilityCurve, axis: str
) -> tuple[Float[np.ndarray, " sizes"], Float[np.ndarray, "draws sizes"]]:
    """Return sizes in ascending order, and the bootstrap samples of the mean over the runs of each."""
    groups: defaultdict[float, list[int]] = defaultdict(list)
    for number, size in enumerate(curve.sizes(axis).tolist()):
        groups[size].append(number)
    sizes = np.array(sorted(groups))
    samples = curve.values[None] if curve.samples is None else curve.samples
    return sizes, np.stack([samples[:, groups[size]].mean(axis=1) for size in sizes.tolist()], axis=1)
