"""Checks of the metric by which the best checkpoint is kept. This module does not import JAX."""

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
    if any(metric == name or fnmatchcase(metric, name) for name in names):
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
    objective = config.require_objective()
    source_names: tuple[str, ...] = ()
    if not config.tasks and len(config.row_objectives) > 1:
        source_names = tuple([source.name for source in config.data.sources])
    run = EvaluatedRun(config.model, objective, source_names, config.tasks)
    names: dict[str, None] = {}
    for evaluator in config.evaluators:
        names.update(dict.fromkeys(evaluator.metric_names(run)))
    return list(names)
