"""Few-shot evaluation by EleutherAI's lm-evaluation-harness: its tasks, prompts, filters and metrics."""

import contextlib
import difflib
import hashlib
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from t5x_lite.errors import UserError
from t5x_lite.evaluate.demonstrations.demonstrations import Demonstrations
from t5x_lite.evaluate.evaluation_model import EvaluationModel
from t5x_lite.evaluate.example_scores import compute_metrics, gather_scores, read_scores
from t5x_lite.models.config import ModelConfig
from t5x_lite.retrieval.config import Passages
from t5x_lite.retrieval.harness_tasks import put_passages
from t5x_lite.retrieval.prompts import PassagePrompts

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from t5x_lite.evaluate.harness_demonstrations import TaskDemonstrations
    from t5x_lite.evaluate.harness_model import HarnessModel

SEED = 1234
"""Seed of the choice of examples in the prompts, and of sampled answers: the harness's own."""

NEW_TOKENS = 256
"""Tokens to generate where a task does not say (the harness's own default)."""
BOOTSTRAP_SAMPLES = 1000
"""Resamples of the documents for the standard errors of metrics that have no formula for them."""

NOT_INSTALLED = "lm-evaluation-harness is not installed; run: pip install 't5x_lite[eval]'"

LONGEST_REASON = 500
"""Characters of another library's error message that are shown."""

Samples: TypeAlias = dict[str, list[Any]]
"""For each task a record of each document and filter, as the harness logs them."""

LoadedTasks: TypeAlias = dict[str, Any]
"""The result of the harness's `TaskManager.load`; `tasks` maps names to tasks."""


@dataclass(frozen=True)
class FewShotPrompts:
    """The demonstrations in prompts.

    Attributes:
        num_fewshot: their number, instead of the task's. A task that is fixed to none keeps none.
        demonstrations: how they are chosen, instead of by the task's sampler.
        seed: seed of this choice, and of sampled answers.
    """

    num_fewshot: int | None = None
    demonstrations: Demonstrations | None = None
    seed: int = SEED


def evaluate_tasks(
    model: EvaluationModel,
    names: Sequence[str],
    *,
    prompts: FewShotPrompts = FewShotPrompts(),
    window: int | None = None,
    include: Path | None = None,
    limit: int | None = None,
    passages: Passages | None = None,
) -> tuple[dict[str, float], Samples]:
    """Evaluate a model on tasks of the harness.

    Args:
        model: the model.
        names: names of tasks, groups or tags that the harness knows, or YAML files.
        prompts: the demonstrations in prompts.
        window: tokens that the model reads at one time, by default all that it can.
        include: a folder of further task YAMLs.
        limit: the most documents of each task.
        passages: passages that are retrieved for each document, before its context.

    Returns:
        Scores and samples. Scores are `<task>/<metric>` (followed by a comma and the filter, unless the filter is
        `none`), `<task>/num_fewshot`, `<task>/documents`, and the metrics of `evaluate.example_scores`. The samples
        have the scores of each example.

    Raises:
        UserError: the harness is not installed, no task has this name, or a task cannot be loaded.
    """
    tasks = _load_for_model(model, names, prompts, include, limit)
    if passages is not None:
        put_passages(tasks["tasks"], PassagePrompts(passages), limit)
    return _evaluate_loaded(model, tasks, window, limit, prompts.seed)


def _load_for_model(
    model: EvaluationModel, names: Sequence[str], prompts: FewShotPrompts, include: Path | None, limit: int | None
) -> LoadedTasks:
    """Load tasks, refuse those that the model cannot do, and set their few-shot examples; see `evaluate_tasks`."""
    # The harness warns of its own tasks.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # The harness prints to stdout, which belongs to our own output.
    with contextlib.redirect_stdout(sys.stderr):
        from t5x_lite.evaluate.harness_demonstrations import set_demonstrations

        tasks = load_tasks(names, include)
        check_tasks(tasks, model.config.model)
        for name, demonstrations in configure_tasks(tasks, prompts, limit).items():
            set_demonstrations(tasks["tasks"][name], demonstrations, prompts.seed, model)
    return tasks


def _evaluate_loaded(
    model: EvaluationModel, tasks: LoadedTasks, window: int | None, limit: int | None, seed: int
) -> tuple[dict[str, float], Samples]:
    """Evaluate a model on tasks that `_load_for_model` has loaded; see `evaluate_tasks`."""
    harness_model = build_harness_model(model, window, seed)
    # The bootstrap would fork a process that runs JAX's threads.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    with contextlib.redirect_stdout(sys.stderr):
        from lm_eval.evaluator import evaluate

        from t5x_lite.evaluate.harness_examples import add_example_scores

        truncated_before = model.likelihood.truncated_inputs
        results = evaluate(harness_model, tasks, limit=limit, bootstrap_iters=BOOTSTRAP_SAMPLES)
        add_example_scores(harness_model, tasks["tasks"], results["samples"])
    truncated = model.likelihood.truncated_inputs - truncated_before
    if truncated:
        logging.warning(
            "%d contexts were longer than %d tokens and lost their beginning", truncated, harness_model.max_length
        )
    return collect_scores(results), results["samples"]


def check_installed() -> None:
    """Check that the harness is installed.

    Raises:
        UserError: it is not.
    """
    if find_spec("lm_eval") is None:
        raise UserError(NOT_INSTALLED)


def build_harness_model(model: EvaluationModel, window: int | None, seed: int = SEED) -> "HarnessModel":
    """Wrap a model for the harness. `seed` is that of sampled answers.

    Raises:
        UserError: the harness is not installed.
    """
    check_installed()
    from t5x_lite.evaluate.harness_model import HarnessModel

    return HarnessModel(model, window, seed)


def load_tasks(names: Sequence[str], include: Path | None, *, include_defaults: bool = True) -> LoadedTasks:
    """Load tasks: from the included folder if it has all of them, else with the harness's thousands, which is slower.

    Args:
        names: names of tasks, groups or tags, or YAML files.
        include: a folder of further task YAMLs.
        include_defaults: False leaves out the harness's own tasks, whose index takes many seconds.

    Raises:
        UserError: no such folder, no such task, or a task that cannot be loaded.
    """
    check_installed()
    from t5x_lite.evaluate.harness_demonstrations import register_samplers

    register_samplers()
    if include is not None:
        if not include.is_dir():
            raise UserError(f"--include {include}: is not a folder")
        manager = _build_manager(include, include_defaults=False)
        if not _unknown_names(names, manager):
            with contextlib.suppress(Exception):  # a task of the folder may need one of the harness's
                return _load_from(manager, names)
    manager = _build_manager(include, include_defaults=include_defaults)
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


def _build_manager(include: Path | None, *, include_defaults: bool) -> "TaskManager":
    """Index the tasks of a folder, and those of the harness. It is done again if a file of the folder has changed."""
    files = []
    if include is not None:
        files = [(str(path), path.stat().st_mtime_ns) for path in sorted(include.rglob("*")) if path.is_file()]
    return _index_tasks(include, include_defaults, tuple(files))


@lru_cache(maxsize=2)
def _index_tasks(include: Path | None, include_defaults: bool, files: tuple[tuple[str, int], ...]) -> "TaskManager":
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=None if include is None else str(include), include_defaults=include_defaults)


def hash_tasks(names: Sequence[str], include: Path | None, num_fewshot: int | None) -> str:
    """Return a hash of the version of the harness, and of the configs and the documents of tasks.

    The documents that examples in prompts are taken from are among them, if there are to be some.

    Raises:
        UserError: see `load_tasks`.
    """
    with contextlib.redirect_stdout(sys.stderr):
        tasks = load_tasks(names, include)["tasks"]
    digest = hashlib.sha256(version("lm_eval").encode())
    for name, task in sorted(tasks.items()):
        digest.update(f"{name} {json.dumps(task.dump_config(), default=str, sort_keys=True)}\n".encode())
        documents = list(task.eval_docs)
        if num_fewshot or (num_fewshot is None and task.get_config("num_fewshot")):
            documents.extend(task.fewshot_docs() or ())
        for document in documents:
            digest.update(json.dumps(document, default=str, sort_keys=True).encode())
    return digest.hexdigest()


def check_tasks(tasks: LoadedTasks, model: ModelConfig, window: int | None = None) -> None:
    """Refuse tasks that generate text for a model that cannot, or more text than it reads.

    Args:
        tasks: loaded tasks.
        model: the model.
        window: tokens that it reads at once; None is as many as it has positions.

    Raises:
        UserError: with the name of the first such task.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    limit = window or model.max_length
    for name, task in tasks["tasks"].items():
        if task.OUTPUT_TYPE != "generate_until":
            continue
        if model.is_encoder_only:
            raise UserError(f"task {name} generates text, which a model of family {model.family} does not")
        settings = normalize_gen_kwargs(task.config.generation_kwargs or {}, NEW_TOKENS)
        new_tokens = settings["max_gen_toks"]
        if model.family == "decoder" and limit is not None and new_tokens >= limit:
            raise UserError(
                f"task {name} generates {new_tokens} tokens (max_gen_toks), which leave no room for a prompt in the "
                f"{limit} that the model reads"
            )


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


def configure_tasks(tasks: LoadedTasks, prompts: FewShotPrompts, limit: int | None) -> dict[str, "TaskDemonstrations"]:
    """Set the number and the seed of few-shot examples.

    Args:
        tasks: loaded tasks.
        prompts: the demonstrations in prompts.
        limit: the most documents of each task.

    Returns:
        For the tasks whose demonstrations the harness does not choose, what they are chosen from.

    Raises:
        UserError: a task that runs code written by the model, or that has too few examples.
    """
    from t5x_lite.evaluate.harness_demonstrations import read_demonstrations

    demonstrations_of_tasks = {}
    for name, task in tasks["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(f"task {name} runs code that the model writes, which is not done here")
        shots = task.get_config("num_fewshot")
        is_fixed_to_none = shots == 0
        if prompts.num_fewshot is not None and not is_fixed_to_none:
            shots = prompts.num_fewshot
        if prompts.demonstrations is not None and not shots and not is_fixed_to_none:
            raise UserError(f"task {name}: has no demonstrations in its prompts: demonstrations= needs num_fewshot=")
        task.set_config(key="num_fewshot", value=shots or 0)
        task.set_fewshot_seed(seed=prompts.seed)
        demonstrations = read_demonstrations(task, prompts.demonstrations, limit)
        if demonstrations is not None:
            demonstrations_of_tasks[name] = demonstrations
        elif shots:
            _check_pool(name, task, shots)
    return demonstrations_of_tasks


def _check_pool(name: str, task: Any, shots: int) -> None:
    """Refuse a task with fewer documents than a prompt has demonstrations, beside the document that is asked."""
    sampler = getattr(task, "sampler", None)
    if sampler is None:
        return
    # The harness draws one more from the split that it evaluates, and leaves the document out.
    is_of_evaluation = task.fewshot_cfg.split == task.config.test_split
    available = len(sampler.fewshot_docs()) - is_of_evaluation
    if available < shots:
        raise UserError(
            f"num_fewshot={shots}: task {name} has {available} documents for demonstrations; give a smaller number"
        )


def collect_scores(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of the harness's results by `<task>/<name>`."""
    scores: dict[str, float] = {}
    for task, metrics in results["results"].items():
        values = {name.removesuffix(",none"): value for name, value in metrics.items() if name != "sample_len"}
        values["num_fewshot"] = results["n-shot"].get(task)
        # There is a record of each document for each filter.
        values["documents"] = len({record["doc_id"] for record in results["samples"].get(task, [])})
        for name, value in values.items():
            if isinstance(value, float | int) and isfinite(value):
                scores[f"{task}/{name}"] = value
    for task, records in results["samples"].items():
        for name, value in compute_metrics(gather_scores(read_scores(records))).items():
            scores[f"{task}/{name}"] = value
    return scores
