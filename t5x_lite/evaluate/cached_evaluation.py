"""Evaluations that are not repeated: `RUN/eval/STEP/cache` has a file for each evaluator and its settings.

The name of a file is a hash of what decides the result: the checkpoint, the run's config with its overrides, the
evaluator's settings, the files that it reads, and the version of the package. A change of one of them makes another
file. The validation text and the task files of the run itself are known by their names in the config alone.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ValidationError

import t5x_lite
from t5x_lite.errors import UserError
from t5x_lite.evaluate.evaluation_model import EvaluationModel
from t5x_lite.evaluate.evaluators import EVALUATORS, Evaluator
from t5x_lite.evaluate.evaluators.evaluator import Evaluation
from t5x_lite.evaluate.example_scores import ExampleScores, gather_scores
from t5x_lite.evaluate.scores_file import save_scores
from t5x_lite.files import disk_error
from t5x_lite.run_dir import Run
from t5x_lite.run_layout import MANIFEST
from t5x_lite.schema import component_name, first_problem
from t5x_lite.storage import file_exists, is_remote, join, read_bytes, write_bytes


class CachedResult(BaseModel, strict=True, extra="forbid", ser_json_inf_nan="constants"):
    """The content of a file.

    Attributes:
        evaluator: its name.
        settings: its settings.
        step: the step of the checkpoint.
        version: of t5x_lite.
        metrics: numbers by their names in `metrics.jsonl`.
        examples: by task, the scores of its examples by name; see `evaluate.example_scores`.
    """

    evaluator: str
    settings: dict[str, object]
    step: int
    version: str
    metrics: dict[str, float]
    examples: dict[str, dict[str, list[float]]]

    def example_scores(self, task: str) -> ExampleScores:
        """Return the scores of a task's examples as arrays."""
        return {name: np.array(values, np.float64) for name, values in self.examples[task].items()}


def evaluate_cached(model: EvaluationModel, evaluator: Evaluator) -> Evaluation:
    """Return the metrics that the cache has, or else run the evaluator and write its result there.

    `scores.json` receives them in both cases, those of evaluators that do not write it themselves too.

    Raises:
        UserError: the evaluation fails; the cache cannot be read or written.
    """
    name = cache_file(model.run, model.step, evaluator, evaluator.fingerprint())
    if file_exists(name):
        result = read_cached(name)
    else:
        result = _evaluate(model, evaluator)
        _write(name, result)
    save_scores(model.run.results_folder(model.step), result.metrics)
    return Evaluation(result.metrics)


def _evaluate(model: EvaluationModel, evaluator: Evaluator) -> CachedResult:
    evaluation = evaluator.run(model)
    examples = {}
    for task, records in evaluation.examples.items():
        scores = gather_scores(records)
        examples[task] = {score: values.tolist() for score, values in scores.items()}
    return CachedResult(
        evaluator=component_name(EVALUATORS, evaluator),
        settings=evaluator.model_dump(mode="json"),
        step=model.step,
        version=t5x_lite.__version__,
        metrics={name: float(value) for name, value in evaluation.metrics.items()},
        examples=examples,
    )


def cache_file(run: Run, step: int, evaluator: Evaluator, fingerprint: str) -> str:
    """Return the name of the file with the result of an evaluator.

    Args:
        run: the run, opened with the overrides of the evaluation.
        step: the step of the checkpoint.
        evaluator: the evaluator.
        fingerprint: its `fingerprint()`, which reads files.
    """
    settings = run.config.model_dump(mode="json", exclude={"run_dir"})
    parts = {
        "checkpoint": _hash_manifest(run, step),
        "config": settings,
        "evaluator": component_name(EVALUATORS, evaluator),
        "settings": evaluator.model_dump(mode="json"),
        "files": fingerprint,
        "version": t5x_lite.__version__,
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    return join(str(run.config.run_dir), f"eval/{step}/cache/{digest}.json")


def read_cached(name: str) -> CachedResult:
    """Read a result.

    Raises:
        UserError: it is damaged.
    """
    try:
        return CachedResult.model_validate(json.loads(read_bytes(name)))
    except ValidationError as error:
        raise UserError(f"{name}: is damaged: {first_problem(error)}; delete it, and evaluate again") from None
    except (OSError, RecursionError, ValueError) as error:
        raise UserError(f"{name}: is damaged: {error}; delete it, and evaluate again") from None


def _write(name: str, result: CachedResult) -> None:
    try:
        if not is_remote(name):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(name, result.model_dump_json() + "\n")
    except OSError as error:
        raise disk_error(name, error, "evaluations that have ended are kept: run the same command again") from error


def _hash_manifest(run: Run, step: int) -> str:
    """Return a hash of the checksums of a checkpoint's files.

    Raises:
        UserError: there is no such checkpoint.
    """
    path = run.checkpoints.folder / str(step) / MANIFEST
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; is the checkpoint complete?") from None
