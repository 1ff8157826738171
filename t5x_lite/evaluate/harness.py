"""Few-shot evaluation by EleutherAI's lm-evaluation-harness: its tasks, prompts, filters and metrics."""

import contextlib
import difflib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from t5x_lite.errors import UserError
from t5x_lite.evaluate.evaluation_model import EvaluationModel
from t5x_lite.models.config import ModelConfig

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from t5x_lite.evaluate.harness_model import HarnessModel

FEWSHOT_SEED = 1234
"""Seed of the choice of examples in the prompts: the harness's own."""

BOOTSTRAP_SAMPLES = 1000
"""Resamples of the documents for the standard errors of metrics that have no formula for them."""

NOT_INSTALLED = "lm-evaluation-harness is not installed; run: pip install 't5x_lite[eval]'"

LONGEST_REASON = 500
"""Characters of another library's error message that are shown."""

Samples: TypeAlias = dict[str, list[Any]]
"""For each task a record of each document and filter, as the harness logs them."""

LoadedTasks: TypeAlias = dict[str, Any]
"""The result of the harness's `TaskManager.load`; `tasks` maps names to tasks."""


def evaluate_tasks(
    model: EvaluationModel,
    names: Sequence[str],
    *,
    num_fewshot: int | None = None,
    window: int | None = None,
    include: Path | None = None,
    limit: int | None = None,
) -> tuple[dict[str, float], Samples]:
    """Evaluate a model on tasks of the harness.

    Args:
        model: the model.
        names: names of tasks, groups or tags that the harness knows, or YAML files.
        num_fewshot: examples in a prompt, instead of the task's own number. A task that is fixed to none keeps none.
        window: tokens that the model reads at one time, by default all that it can.
        include: a folder of further task YAMLs.
        limit: the most documents of each task.

    Returns:
        Scores and samples. Scores are `<task>/<metric>` (followed by a comma and the filter, unless the filter is
        `none`), `<task>/num_fewshot` and `<task>/documents`.

    Raises:
        UserError: the harness is not installed, no task has this name, or a task cannot be loaded.
    """
    tasks = load_for_model(model, names, num_fewshot, include)
    return evaluate_loaded(model, tasks, window, limit)


def load_for_model(
    model: EvaluationModel, names: Sequence[str], num_fewshot: int | None, include: Path | None
) -> LoadedTasks:
    """Load tasks, refuse those that the model cannot do, and set their few-shot examples; see `evaluate_tasks`."""
    check_installed()
    # The harness warns of its own tasks.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # The harness prints to stdout, which belongs to our own output.
    with contextlib.redirect_stdout(sys.stderr):
        tasks = load_tasks(names, include)
        check_tasks(tasks, model.config.model)
        _configure_tasks(tasks, num_fewshot)
    return tasks


def evaluate_loaded(
    model: EvaluationModel, tasks: LoadedTasks, window: int | None, limit: int | None
) -> tuple[dict[str, float], Samples]:
    """Evaluate a model on tasks that `load_for_model` has loaded; see `evaluate_tasks`."""
    harness_model = build_harness_model(model, window)
    # The bootstrap would fork a process that runs JAX's threads.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    with contextlib.redirect_stdout(sys.stderr):
        from lm_eval.evaluator import evaluate

        truncated_before = model.likelihood.truncated_inputs
        results = evaluate(harness_model, tasks, limit=limit, bootstrap_iters=BOOTSTRAP_SAMPLES)
    truncated = model.likelihood.truncated_inputs - truncated_before
    if truncated:
        logging.warning(
            "%d contexts were longer than %d tokens and lost their beginning", truncated, harness_model.max_length
        )
    return _collect_scores(results), results["samples"]


def check_installed() -> None:
    """Check that the harness is installed.

    Raises:
        UserError: it is not.
    """
    if find_spec("lm_eval") is None:
        raise UserError(NOT_INSTALLED)


def build_harness_model(model: EvaluationModel, window: int | None) -> "HarnessModel":
    """Wrap a model for the harness.

    Raises:
        UserError: the harness is not installed.
    """
    try:
        from t5x_lite.evaluate.harness_model import HarnessModel
    except ImportError:
        raise UserError(NOT_INSTALLED) from None
    return HarnessModel(model, window)


def load_tasks(names: Sequence[str], include: Path | None, *, include_defaults: bool = True) -> LoadedTasks:
    """Load tasks: from the included folder if it has all of them, else with the harness's thousands, which is slower.

    Args:
        names: names of tasks, groups or tags, or YAML files.
        include: a folder of further task YAMLs.
        include_defaults: False leaves out the harness's own tasks, whose index takes many seconds.

    Raises:
        UserError: no such folder, no such task, or a task that cannot be loaded.
    """
    from lm_eval.tasks import TaskManager

    if include is not None:
        if not include.is_dir():
            raise UserError(f"--include {include}: is not a folder")
        manager = TaskManager(include_path=str(include), include_defaults=False)
        if not _unknown_names(names, manager):
            with contextlib.suppress(Exception):  # a task of the folder may need one of the harness's
                return _load_from(manager, names)
    include_path = None if include is None else str(include)
    manager = TaskManager(include_path=include_path, include_defaults=include_defaults)
    unknown = _unknown_names(names, manager)
    if unknown:
        nearest = difflib.get_close_matches(unknown[0], manager.all_tasks, n=3)
        hint = f"; nearest are {', '.join(nearest)}" if nearest else ""
        raise UserError(f"tasks={unknown[0]}: there is no such task{hint}")
    try:
        return _load_from(manager, names)
    except Exception as error:  # YAML, data sets and the task's own code raise errors of every kind
        message = " ".join(str(error).split())
        reason = f"{type(error).__name__}: {message}"[:LONGEST_REASON]
        raise UserError(f"tasks={','.join(names)}: cannot be loaded: {reason}") from None


def check_tasks(tasks: LoadedTasks, model: ModelConfig) -> None:
    """Refuse tasks that generate text for a model that cannot.

    Raises:
        UserError: with the name of the first such task.
    """
    if not model.is_encoder_only:
        return
    for name, task in tasks["tasks"].items():
        if task.OUTPUT_TYPE == "generate_until":
            raise UserError(f"task {name} generates text, which a model of family {model.family} does not")


def _unknown_names(names: Sequence[str], manager: "TaskManager") -> list[str]:
    return [name for name in names if name not in manager.all_tasks and not Path(name).is_file()]


def _load_from(manager: "TaskManager", names: Sequence[str]) -> LoadedTasks:
    """Load tasks and build the prompt of the first document of each, so that a missing column is an error now."""
    loaded = manager.load(list(names))
    for task in loaded["tasks"].values():
        document = next(iter(task.eval_docs))
        task.doc_to_text(document)
        task.doc_to_target(document)
    return loaded


def _configure_tasks(tasks: LoadedTasks, num_fewshot: int | None) -> None:
    """Set the number and the seed of few-shot examples.

    Raises:
        UserError: a task that runs code written by the model.
    """
    for name, task in tasks["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(f"task {name} runs code that the model writes, which is not done here")
        shots = task.get_config("num_fewshot")
        is_fixed_to_none = shots == 0
        if num_fewshot is not None and not is_fixed_to_none:
            shots = num_fewshot
        task.set_config(key="num_fewshot", value=shots or 0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)


def _collect_scores(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of the harness's results by `<task>/<name>`."""
    scores: dict[str, float] = {}
    for task, metrics in results["results"].items():
        values = {name.removesuffix(",none"): value for name, value in metrics.items() if name != "sample_len"}
        values["num_fewshot"] = results["n-shot"].get(task)
        values["documents"] = len(results["samples"].get(task, []))
        for name, value in values.items():
            if isinstance(value, float | int) and isfinite(value):
                scores[f"{task}/{name}"] = value
    return scores
