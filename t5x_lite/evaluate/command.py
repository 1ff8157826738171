"""`t5x-lite eval`: evaluate a run on tasks, on a text file, or on its validation split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from t5x_lite.api import Model
from t5x_lite.errors import UserError
from t5x_lite.evaluate import harness, perplexity
from t5x_lite.evaluate.config import EVAL_ARGUMENTS
from t5x_lite.tasks import short_name


@dataclass(frozen=True)
class EvaluationRequest:
    """A choice of evaluations. A request without tasks and text is for the run's validation split.

    Attributes:
        tasks: names of tasks.
        text: a file to compute the perplexity of.
        num_fewshot: examples in the prompts of tasks; None takes each task's number.
        window: tokens that the model reads at once; None takes as many as it can.
        stride: tokens scored by each window after the first.
        include: folder with YAML files of further tasks.
        limit: largest number of documents per task.
    """

    tasks: tuple[str, ...] | None = None
    text: Path | None = None
    num_fewshot: int | None = None
    window: int | None = None
    stride: int | None = None
    include: Path | None = None
    limit: int | None = None


def parse_request(words: Sequence[str], include: Path | None, limit: int | None) -> tuple[EvaluationRequest, list[str]]:
    """Separate the arguments of `EVAL_ARGUMENTS` from overrides of the config.

    Args:
        words: `name=value` arguments of the command line; a leading `--` is ignored.
        include: folder with YAML files of further tasks.
        limit: largest number of documents per task.

    Returns:
        The request, and the remaining words.

    Raises:
        UserError: a value of the wrong type, or options that need `tasks=`.
    """
    arguments: dict[str, str] = {}
    overrides = []
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if name in EVAL_ARGUMENTS:
            arguments[name] = value
        else:
            overrides.append(word)
    numbers = _parse_numbers(arguments)
    if "tasks" not in arguments and (include is not None or limit is not None):
        raise UserError("eval: --include and --limit are for tasks=")
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: expected a number of documents")
    tasks = None
    if "tasks" in arguments:
        tasks = tuple(arguments["tasks"].split(","))
    text = None
    if "text" in arguments:
        text = Path(arguments["text"])
    request = EvaluationRequest(tasks=tasks, text=text, include=include, limit=limit, **numbers)
    return request, overrides


def _parse_numbers(arguments: Mapping[str, str]) -> dict[str, int]:
    numbers = {}
    errors = []
    for name, value in arguments.items():
        if name in {"tasks", "text"}:
            continue
        if value.isdecimal():
            numbers[name] = int(value)
        else:
            errors.append(f"{name}={value}: expected a whole number")
    if errors:
        raise UserError("; ".join(errors))
    return numbers


def evaluate_model(model: Model, request: EvaluationRequest) -> dict[str, float]:
    """Evaluate a model, and return its metrics by the names `eval/…`.

    Results of tasks are also written to RUN/eval/STEP.
    """
    results: dict[str, float] = {}
    if request.tasks is not None:
        results |= _evaluate_tasks(model, request.tasks, request)
    if request.text is not None:
        scores = perplexity.score_file(model, request.text, request.window, request.stride)
        results |= {f"eval/text/{name}": value for name, value in scores.items()}
    if not results:
        results = {f"eval/{name}": value for name, value in model.evaluate().items()}
    return results


def _evaluate_tasks(model: Model, tasks: Sequence[str], request: EvaluationRequest) -> dict[str, float]:
    """Evaluate tasks that the run was trained on by its own metrics, and all others with lm-evaluation-harness."""
    trained_tasks = {short_name(name) for name in model.config.tasks}.intersection(tasks)
    scores: dict[str, float] = {}
    if trained_tasks:
        for name, value in model.evaluate().items():
            if name.partition("/")[0] in trained_tasks:
                scores[name] = value
    other_tasks = [name for name in tasks if name not in trained_tasks]
    samples: dict[str, list[object]] = {}
    if other_tasks:
        other_scores, samples = harness.evaluate_tasks(
            model,
            other_tasks,
            num_fewshot=request.num_fewshot,
            window=request.window,
            include=request.include,
            limit=request.limit,
        )
        scores |= other_scores
    results = {f"eval/{name}": value for name, value in scores.items()}
    harness.save(model.run.folder / "eval" / str(model.step), results, samples)
    return results
