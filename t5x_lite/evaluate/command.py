"""`t5x-lite eval`: evaluate a run on tasks, on a text file, or on its validation split."""

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml

from t5x_lite.config import RunConfig
from t5x_lite.errors import UserError
from t5x_lite.evaluate.cached_evaluation import evaluate_cached
from t5x_lite.evaluate.config import EVAL_ARGUMENTS
from t5x_lite.evaluate.demonstrations import DEMONSTRATIONS, Demonstrations
from t5x_lite.evaluate.evaluation_model import EvaluationModel
from t5x_lite.evaluate.evaluators import Blimp, Evaluator, FewShot, Perplexity, Tasks
from t5x_lite.evaluate.evaluators.cloze import load_cloze
from t5x_lite.evaluate.evaluators.memorisation import Memorisation
from t5x_lite.plugins import load_plugins
from t5x_lite.retrieval.config import Passages
from t5x_lite.schema import COMMAND_LINE, Config, OneOf, Sources, setting, validate
from t5x_lite.schema.settings import LARGEST_INT
from t5x_lite.tasks import short_name

SUBJECTS = ("tasks", "text", "blimp", "cloze", "memorisation")
"""Arguments that name evaluations."""


class PromptArguments(Config):
    """Arguments of the command line that are components."""

    demonstrations: Annotated[Demonstrations, OneOf(DEMONSTRATIONS)] = setting(..., "how demonstrations are chosen")


@dataclass(frozen=True)
class EvaluationRequest:
    """A choice of evaluations. A request without any of them is for the evaluators of the run.

    Attributes:
        tasks: names of tasks.
        text: a file to compute the perplexity of.
        blimp: files of BLiMP's minimal pairs.
        cloze: the YAML file of a cloze task.
        memorisation: the file of planted strings.
        num_fewshot: examples in the prompts of tasks; None takes each task's number.
        demonstrations: how they are chosen; None takes each task's sampler.
        seed: seed of this choice and of sampled answers; None takes the evaluator's.
        window: tokens that the model reads at once; None takes as many as it can.
        stride: tokens scored by each window after the first.
        include: folder with YAML files of further tasks.
        limit: largest number of documents per task, and of pairs per set.
        passages: passages that are put before the contexts of tasks.
    """

    tasks: tuple[str, ...] | None = None
    text: Path | None = None
    blimp: tuple[str, ...] | None = None
    cloze: Path | None = None
    memorisation: str | None = None
    num_fewshot: int | None = None
    demonstrations: Demonstrations | None = None
    seed: int | None = None
    window: int | None = None
    stride: int | None = None
    include: Path | None = None
    limit: int | None = None
    passages: Passages | None = None


def parse_request(
    words: Sequence[str], include: Path | None, limit: int | None, passages: Passages | None = None
) -> tuple[EvaluationRequest, list[str]]:
    """Separate the arguments of `EVAL_ARGUMENTS` from overrides of the config.

    Args:
        words: `name=value` arguments of the command line; a leading `--` is ignored.
        include: folder with YAML files of further tasks.
        limit: largest number of documents per task, and of pairs per set.
        passages: passages that are put before the contexts of tasks.

    Returns:
        The request, and the remaining words.

    Raises:
        UserError: a value of the wrong type, or options that need `tasks=` or `blimp=`.
    """
    arguments: dict[str, str] = {}
    overrides = []
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if name in EVAL_ARGUMENTS:
            if name in arguments:
                raise UserError(f"eval: {name}= is given twice; remove one of them")
            if not value:
                raise UserError(f"eval: {name}= is empty")
            arguments[name] = value
        else:
            overrides.append(word)
    numbers = _parse_numbers(arguments)
    _check_options(arguments, include, limit, passages)
    tasks = None
    if "tasks" in arguments:
        tasks = tuple(arguments["tasks"].split(","))
    text = None
    if "text" in arguments:
        text = Path(arguments["text"])
        if not text.is_file() and not glob.has_magic(arguments["text"]):
            raise UserError(f"eval: text={text}: there is no such file")
    blimp = None
    if "blimp" in arguments:
        blimp = tuple(arguments["blimp"].split(","))
    cloze = None
    if "cloze" in arguments:
        cloze = Path(arguments["cloze"])
    demonstrations = None
    if "demonstrations" in arguments:
        demonstrations = _parse_demonstrations(arguments["demonstrations"])
    request = EvaluationRequest(
        tasks=tasks,
        text=text,
        blimp=blimp,
        cloze=cloze,
        demonstrations=demonstrations,
        memorisation=arguments.get("memorisation"),
        include=include,
        limit=limit,
        passages=passages,
        **numbers,
    )
    return request, overrides


def _check_options(
    arguments: Mapping[str, str], include: Path | None, limit: int | None, passages: Passages | None
) -> None:
    """Refuse options that are not for what is evaluated."""
    if "tasks" not in arguments and include is not None:
        raise UserError("eval: --include is for tasks=")
    if "tasks" not in arguments and passages is not None:
        raise UserError("eval: --index is for tasks=")
    for name in ("demonstrations", "seed", "num_fewshot"):
        if "tasks" not in arguments and name in arguments:
            raise UserError(f"eval: {name}= is for tasks=")
    if not arguments.keys() & {"tasks", "text"} and "window" in arguments:
        raise UserError("eval: window= is for tasks= and text=")
    if "text" not in arguments and "stride" in arguments:
        raise UserError("eval: stride= is for text=")
    if not arguments.keys() & {"tasks", "blimp", "cloze"} and limit is not None:
        raise UserError("eval: --limit is for tasks=, blimp= and cloze=")
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: expected a number of documents")


def _parse_demonstrations(value: str) -> Demonstrations:
    """Return the choice of demonstrations that a name, or a name with settings in YAML, stands for.

    Raises:
        UserError: no such choice, or wrong settings.
    """
    load_plugins()
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"demonstrations={value}: is not YAML; write a name, or {{name: {{setting: value}}}}") from None
    sources = Sources({"demonstrations": parsed}, {"demonstrations": COMMAND_LINE})
    return validate(PromptArguments, sources).demonstrations


def _parse_numbers(arguments: Mapping[str, str]) -> dict[str, int]:
    numbers = {}
    errors = []
    for name, value in arguments.items():
        if name in {*SUBJECTS, "demonstrations"}:
            continue
        smallest = 1 if name in {"window", "stride"} else 0
        if not value.isdecimal():
            errors.append(f"{name}={value}: expected a whole number from {smallest} on")
        elif int(value) < smallest:
            errors.append(f"{name}={value}: expected at least {smallest}")
        elif int(value) > LARGEST_INT:
            errors.append(f"{name}={value}: expected at most {LARGEST_INT}")
        else:
            numbers[name] = int(value)
    if errors:
        raise UserError("; ".join(errors))
    return numbers


def evaluate_model(model: EvaluationModel, request: EvaluationRequest, *, cached: bool = False) -> dict[str, float]:
    """Evaluate a model, and return its metrics by their names in `metrics.jsonl`, such as `eval/loss`.

    Results of tasks are also written to RUN/eval/STEP.

    Args:
        model: the model.
        request: the evaluations.
        cached: take results of the same evaluations from RUN/eval/STEP/cache, and write the others there.
    """
    metrics: dict[str, float] = {}
    for evaluator in choose_evaluators(model.config, request):
        evaluation = evaluate_cached(model, evaluator) if cached else evaluator.run(model)
        metrics.update(evaluation.metrics)
    return metrics


def choose_evaluators(config: RunConfig, request: EvaluationRequest) -> list[Evaluator]:
    """Return what a request asks for: the evaluators of the run, if it names nothing else.

    Tasks that the run was trained on are evaluated by their own metrics, all others by lm-evaluation-harness.
    """
    if all(getattr(request, subject) is None for subject in SUBJECTS):
        return list(config.evaluators)
    evaluators: list[Evaluator] = []
    trained_names = {short_name(name) for name in config.tasks}
    requested = request.tasks or ()
    trained_tasks = tuple(name for name in requested if name in trained_names)
    other_tasks = tuple(name for name in requested if name not in trained_names)
    if trained_tasks and not other_tasks:
        _check_harness_options(request, trained_tasks[0])
    if trained_tasks and request.passages is not None:
        raise UserError(f"eval: --index is for tasks of lm-evaluation-harness, not for {trained_tasks[0]} of the run")
    if trained_tasks:
        evaluators.append(Tasks(names=trained_tasks))
    for name in other_tasks:
        few_shot = FewShot(
            tasks=(name,),
            num_fewshot=request.num_fewshot,
            demonstrations=request.demonstrations,
            window=request.window,
            include=None if request.include is None else str(request.include),
            limit=request.limit,
            passages=request.passages,
        )
        if request.seed is not None:
            few_shot = few_shot.model_copy(update={"seed": request.seed})
        evaluators.append(few_shot)
    if request.text is not None:
        evaluators.append(Perplexity(text=str(request.text), window=request.window, stride=request.stride))
    if request.blimp is not None:
        evaluators.append(Blimp(files=request.blimp, limit=request.limit))
    if request.cloze is not None:
        task = load_cloze(request.cloze)
        evaluators.append(task.model_copy(update={"limit": request.limit or task.limit}))
    if request.memorisation is not None:
        evaluators.append(Memorisation(file=request.memorisation))
    return evaluators


def _check_harness_options(request: EvaluationRequest, task: str) -> None:
    """Refuse options of lm-evaluation-harness for tasks of the run.

    Raises:
        UserError: with the first of them.
    """
    options: dict[str, object] = {"--include": request.include, "demonstrations=": request.demonstrations}
    options |= {"num_fewshot=": request.num_fewshot, "seed=": request.seed}
    if request.text is None:
        options["window="] = request.window
    if request.blimp is None and request.cloze is None:
        options["--limit"] = request.limit
    for name, value in options.items():
        if value is not None:
            raise UserError(f"eval: {name} is for tasks of lm-evaluation-harness, not for {task} of the run")
