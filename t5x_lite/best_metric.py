"""Checks of the metric by which the best checkpoint is kept. This module does not import JAX."""

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from t5x_lite.checkpoint_config import CheckpointConfig
from t5x_lite.errors import UserError, join_first, suggest
from t5x_lite.evaluate.evaluators.evaluator import EvaluatedRun
from t5x_lite.schema import Sources
from t5x_lite.unused_settings import is_location_of_run, is_location_of_user

if TYPE_CHECKING:
    from t5x_lite.config import RunConfig

LISTED_NAMES = 20
"""Metrics that an error lists; it counts the others."""


def check_best_metric(config: "RunConfig", sources: Sources) -> None:
    """Refuse a best checkpoint that no evaluation of a run determines, or that is the worst.

    Args:
        config: the run.
        sources: where its settings were set.

    Raises:
        UserError: no evaluator reports `checkpoint.best_metric`, or the highest loss is best.
    """
    default = CheckpointConfig().best_metric
    checkpoint = config.checkpoint
    if config.objective is None or not checkpoint.keep_best:
        return
    if checkpoint.best_metric != default:
        location = sources.location_of("checkpoint.best_metric")
        # Those of shipped configs are for their own tasks; the first evaluation warns of one that a run has not.
        if is_location_of_user(location):
            _check_name(config, location)
        return
    location = sources.location_of("checkpoint.best")
    # Runs of earlier versions may have it.
    if checkpoint.best == "highest" and not is_location_of_run(location):
        raise UserError(
            f"{location}: `checkpoint.best` is highest, and checkpoint.best_metric is {default}, whose highest value "
            "is the worst; set checkpoint.best_metric to a metric that is best where it is highest"
        )


def _check_name(config: "RunConfig", location: str) -> None:
    """Refuse a metric that no evaluator reports; the message has the names of those that they do."""
    metric = config.checkpoint.best_metric
    names = metric_names(config)
    if _is_among(metric, names):
        return
    raise UserError(
        f"{location}: `checkpoint.best_metric`: no evaluator of the run reports {metric}{suggest(metric, names)}; they "
        f"report {join_first(names, LISTED_NAMES) or 'nothing'}"
    )


def metric_names(config: "RunConfig") -> Sequence[str]:
    """Return the names of the metrics that the evaluators of a run report; see `Evaluator.metric_names`.

    Raises:
        UserError: the run has no objective.
    """
    run = _evaluated_run(config)
    names: dict[str, None] = {}
    for evaluator in config.evaluators:
        names.update(dict.fromkeys(evaluator.metric_names(run)))
    return list(names)


def best_checkpoint_notice(config: "RunConfig") -> str | None:
    """Return a line that says that no evaluation ranks checkpoints, or that few steps are both evaluated and saved.

    The best checkpoint is chosen among the checkpoints of steps at which `checkpoint.best_metric` is evaluated. None if
    all steps that are saved are evaluated, or the other way around.
    """
    checkpoint = config.checkpoint
    if config.objective is None or not checkpoint.keep_best:
        return None
    run = _evaluated_run(config)
    names = metric_names(config)
    if names and not _is_among(checkpoint.best_metric, names):
        return (
            f"checkpoint.best_metric: no evaluator of the run reports {checkpoint.best_metric}, so that no best "
            f"checkpoint is kept; set it to one of {join_first(names, LISTED_NAMES)}"
        )
    if checkpoint.every_steps >= config.train.steps:
        return None
    intervals = []
    for evaluator in config.evaluators:
        if _is_among(checkpoint.best_metric, evaluator.metric_names(run)):
            intervals.append(evaluator.every_steps or config.eval.every_steps)
    interval = min(intervals, default=checkpoint.every_steps)
    both = math.lcm(interval, checkpoint.every_steps)
    if both in {interval, checkpoint.every_steps}:
        return None
    return (
        f"checkpoint.keep_best: {checkpoint.best_metric} is evaluated every {interval} steps and checkpoints are saved "
        f"every {checkpoint.every_steps}, so that the best one is chosen among those of every {both} steps and the "
        "last; let one of the two numbers be a multiple of the other"
    )


def _evaluated_run(config: "RunConfig") -> EvaluatedRun:
    objective = config.require_objective()
    source_names: tuple[str, ...] = ()
    if not config.tasks and len(config.row_objectives) > 1:
        source_names = tuple([source.name for source in config.data.sources])
    return EvaluatedRun(config.model, objective, source_names, config.tasks)


def _is_among(metric: str, names: Sequence[str]) -> bool:
    """Return whether a metric is one of some names, in which `*` stands for any text."""
    return any(fnmatchcase(metric, name) for name in names)
