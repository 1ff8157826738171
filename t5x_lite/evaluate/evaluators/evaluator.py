"""The interface of an evaluator: from a model to metrics, in training, by `t5x-lite eval`, or from Python."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.objectives.objective import Objective
from t5x_lite.schema import Config, Int, Sources, setting

if TYPE_CHECKING:
    from t5x_lite.evaluate.evaluation_model import EvaluationModel


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluator.

    Attributes:
        metrics: numbers by their names in `metrics.jsonl`, such as `eval/loss`.
        summary: the result in one line for people; empty prints nothing.
        status: a few words that are shown after the metrics of each step, until the next evaluation.
        examples: by task, the scores of its examples that `evaluate.example_scores` names.
    """

    metrics: dict[str, float]
    summary: str = ""
    status: str = ""
    examples: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluatedRun:
    """The settings of a run that the names of its metrics follow from.

    Attributes:
        model: its model.
        objective: its objective.
        source_names: the sources of its text, if they have several objectives and are evaluated one by one.
        tasks: the names of its tasks.
    """

    model: ModelConfig
    objective: Objective
    source_names: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Argument:
    """The argument `NAME=VALUE` by which `t5x-lite eval` chooses an evaluator.

    Attributes:
        name: its name, such as `text`.
        description: what its value is, for the help.
        field: the setting of the evaluator that the value is; None if `Evaluator.from_argument` reads it otherwise.
    """

    name: str
    description: str
    field: str | None = None


class RunsOnModel(Protocol):
    """Anything that evaluates a model."""

    def run(self, model: "EvaluationModel") -> Evaluation:
        """Evaluate the model. All processes of a job call this at the same step."""


class Evaluator(Config):
    """An evaluator with its settings.

    An evaluator is one file: a class of this kind and an entry in `EVALUATORS`. It imports JAX inside `run`, so that a
    config is checked before JAX starts. Whatever it compiles for a model belongs to the model, which keeps it from one
    evaluation to the next, as `apply_to_rows` does.
    """

    argument: ClassVar[Argument | None] = None
    """Name on the command line of `eval`, where the other settings are options. None if only configs name it."""

    every_steps: Int | None = setting(
        None, "steps between evaluations in training; null takes eval.every_steps", unit="steps", ge=1
    )

    @classmethod
    def from_argument(cls, value: str) -> Iterator[Sources]:
        """Yield the settings of each evaluator that a value of `argument` asks for, to which options are added.

        By default this is one evaluator, and the value is its setting `argument.field`.

        Raises:
            UserError: the value cannot be read.
        """
        assert cls.argument is not None
        assert cls.argument.field is not None, "an argument without a field has a from_argument"
        yield Sources.of_command_line({cls.argument.field: value})

    def model_problems(self, model: ModelConfig) -> Iterator[str]:
        """Yield why a model cannot be evaluated this way."""
        yield from ()

    def check_model(self, model: ModelConfig) -> None:
        """Refuse a model that cannot be evaluated this way.

        Raises:
            UserError: with the first of its `model_problems`.
        """
        for problem in self.model_problems(model):
            raise UserError(problem)

    def metric_names(self, run: EvaluatedRun) -> Sequence[str]:
        """Return the names of the metrics, by which `checkpoint.best_metric` is checked.

        `*` stands for any text in names that only an evaluation tells. By default all are such.
        """
        return ("eval/*",)

    def prepare(self, model: ModelConfig) -> None:
        """Check what the config alone does not tell, such as files, before training starts.

        Args:
            model: the model that will be evaluated.

        Raises:
            UserError: an evaluation would fail.
        """

    def fingerprint(self) -> str:
        """Return a text that changes if the files that the evaluator reads may have changed.

        Raises:
            UserError: they cannot be read.
        """
        return ""

    @abstractmethod
    def run(self, model: "EvaluationModel") -> Evaluation:
        """Evaluate the model. All processes of a job call this at the same step."""


def window_problems(subject: str, window: int | None, model: ModelConfig) -> Iterator[str]:
    """Yield why a model cannot read so many tokens at once. `subject` begins the sentence."""
    if window is not None and model.max_length is not None and window > model.max_length:
        setting = model.positions.max_length_setting
        yield f"{subject}: window {window} is larger than the model's {model.max_length} positions ({setting})"


def token_problems(subject: str, model: ModelConfig) -> Iterator[str]:
    """Yield why a model gives texts no probability: it predicts no tokens. `subject` begins the sentence."""
    if not model.predicts_tokens:
        yield f"{subject} need a model that predicts tokens; this model's outputs are {list(model.outputs)}"
