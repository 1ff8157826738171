"""`t5x-lite eval`: evaluate a run on tasks, on a text file, or on its validation split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from t5x_lite.config import RunConfig
from t5x_lite.errors import UserError, suggest
from t5x_lite.evaluate.arguments import named_evaluators, option_fields, option_owners
from t5x_lite.evaluate.cached_evaluation import evaluate_cached
from t5x_lite.evaluate.evaluation_model import EvaluationModel
from t5x_lite.evaluate.evaluators import Evaluator, FewShot, Tasks
from t5x_lite.retrieval.config import Passages
from t5x_lite.schema import COMMAND_LINE, Sources, merge_overrides, validate
from t5x_lite.tasks import short_name


@dataclass(frozen=True)
class Option:
    """A setting that the command line gives to all evaluators that have it.

    Attributes:
        spelling: how it is written, such as `window=` or `--limit`.
        value: its value before validation.
        location: where errors say that it was set.
    """

    spelling: str
    value: object
    location: str = COMMAND_LINE


@dataclass(frozen=True)
class EvaluationRequest:
    """A choice of evaluations. A request without any of them is for the evaluators of the run.

    Attributes:
        evaluators: in the order of their arguments, with their options; tasks of the run are few-shot tasks still.
        options: the options by the setting.
    """

    evaluators: tuple[Evaluator, ...] = ()
    options: Mapping[str, Option] = field(default_factory=dict)


def parse_request(
    words: Sequence[str], include: Path | None, limit: int | None, passages: Passages | None = None
) -> tuple[EvaluationRequest, list[str]]:
    """Separate the arguments of evaluators and their options from overrides of the config.

    Args:
        words: `name=value` arguments of the command line; a leading `--` is ignored.
        include: the option `--include`.
        limit: the option `--limit`.
        passages: the passages of the option `--index`.

    Returns:
        The request, and the remaining words.

    Raises:
        UserError: a value of the wrong type, or an option that no evaluator of the request has.
    """
    named = named_evaluators()
    arguments, other_words = _split_words(words, set(named))
    fields = {name: {declaration.key for declaration in option_fields(named[name])} for name in arguments}
    known = option_owners()
    option_names = known.keys() - RunConfig.model_fields.keys()
    option_values, overrides = _split_words(other_words, option_names.union(*fields.values()))
    options: dict[str, Option] = {}
    for name, value in option_values.items():
        options[name] = Option(f"{name}=", merge_overrides(Evaluator, [f"{name}={value}"])[name])
    for name, option in _named_options(include, limit, passages).items():
        if name in options:
            raise UserError(f"eval: {option.spelling} and {name}= are the same; remove one of them")
        options[name] = option
    _check_overrides(overrides, [*named, *option_names])
    for name, option in options.items():
        if not any(name in names for names in fields.values()):
            owners = _enumerate(known[name])
            raise UserError(f"eval: {option.spelling} is for {owners}; add that, or remove {option.spelling}")
    evaluators: list[Evaluator] = []
    for argument, value in arguments.items():
        valid_options = {name: option for name, option in options.items() if name in fields[argument]}
        evaluators += _build(named[argument], value, valid_options)
    return EvaluationRequest(tuple(evaluators), options), overrides


def _named_options(include: Path | None, limit: int | None, passages: Passages | None) -> dict[str, Option]:
    """Return those options, by the setting, that the command line also has with two dashes."""
    options: dict[str, Option] = {}
    if include is not None:
        options["include"] = Option("--include", str(include), location="--include")
    if limit is not None:
        options["limit"] = Option("--limit", limit, location="--limit")
    if passages is not None:
        options["passages"] = Option("--index", passages, location="--index")
    return options


def _split_words(words: Sequence[str], names: set[str]) -> tuple[dict[str, str], list[str]]:
    """Return the values of the words `name=value` with one of these names, and the other words.

    Raises:
        UserError: a name is given twice, or without a value.
    """
    values: dict[str, str] = {}
    others = []
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if name not in names:
            others.append(word)
            continue
        if name in values:
            raise UserError(f"eval: {name}= is given twice; remove one of them")
        if not value:
            raise UserError(f"eval: {name}= is empty")
        values[name] = value
    return values, others


def _check_overrides(words: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a word that is neither an override of the config nor one of the names of arguments and options.

    Raises:
        UserError: with the nearest name.
    """
    groups = RunConfig.model_fields
    for word in words:
        name = word.removeprefix("--").partition("=")[0]
        if "." not in name and name not in groups:
            hint = suggest(name, [*names, *groups], suffix="=")
            raise UserError(f"eval: unknown argument {name}={hint}; `t5x-lite eval --help` lists them")


def _enumerate(arguments: Sequence[str]) -> str:
    """Return names of arguments as `a=, b= or c=`."""
    *first, last = [f"{name}=" for name in arguments]
    if not first:
        return last
    return f"{', '.join(first)} or {last}"


def _build(kind: type[Evaluator], value: str, options: Mapping[str, Option]) -> list[Evaluator]:
    """Return the evaluators that the value of an argument asks for.

    Args:
        kind: the class that has the argument.
        value: the value.
        options: settings to add.

    Raises:
        UserError: the value cannot be read, or an option has the wrong type.
    """
    evaluators: list[Evaluator] = []
    for settings in kind.from_argument(value):
        values = dict(settings.values)
        locations = dict(settings.locations)
        for name, option in options.items():
            values[name] = option.value
            locations[name] = option.location
        evaluators.append(validate(kind, Sources(values, locations)))
    return evaluators


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

    Raises:
        UserError: an option that tasks of the run do not have.
    """
    if not request.evaluators:
        return list(config.evaluators)
    trained_names = {short_name(name) for name in config.tasks}
    trained_tasks: list[str] = []
    chosen: list[Evaluator] = []
    for evaluator in request.evaluators:
        if isinstance(evaluator, FewShot) and trained_names.issuperset(evaluator.tasks):
            trained_tasks += evaluator.tasks
        else:
            chosen.append(evaluator)
    if not trained_tasks:
        return chosen
    for name, option in request.options.items():
        if not any(name in type(evaluator).model_fields for evaluator in chosen):
            of_harness = "is for tasks of lm-evaluation-harness"
            raise UserError(f"eval: {option.spelling} {of_harness}, not for {trained_tasks[0]} of the run")
    return [Tasks(names=tuple(trained_tasks)), *chosen]
