"""Our choices of demonstrations for the tasks of lm-evaluation-harness. Importing this file needs the harness."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

from lm_eval.api.samplers import SAMPLER_REGISTRY, ContextSampler
from lm_eval.api.task import ConfigurableTask

from t5x_lite.errors import UserError
from t5x_lite.evaluate.demonstrations import DEMONSTRATIONS
from t5x_lite.evaluate.demonstrations.demonstrations import (
    Demonstrations,
    Example,
    ExampleSets,
    check_pool,
)
from t5x_lite.evaluate.evaluation_model import EvaluationModel

Document: TypeAlias = dict[str, Any]


class NamedSampler(ContextSampler):
    """The place of a choice that a task's YAML names as `fewshot_config: {sampler: NAME}`, until a model is known."""

    name: str


class ChosenSampler(ContextSampler):
    """A sampler of the harness that returns demonstrations which were chosen before.

    Attributes:
        query: the example whose prompt is built next.
    """

    def __init__(self, documents: Sequence[Document], chosen: Mapping[Example, Sequence[int]]) -> None:
        super().__init__(documents)
        self._chosen = chosen
        self.query: Example | None = None

    def sample(self, n: int, *_: object, **__: object) -> list[Document]:
        """Return the demonstrations of `query`."""
        assert self.query is not None
        return [self.df[index] for index in self._chosen[self.query][:n]]


def register_samplers() -> None:
    """Register every choice as a sampler of the harness, so that the YAMLs of tasks can name it."""
    for name in DEMONSTRATIONS:
        SAMPLER_REGISTRY.setdefault(name, type(name, (NamedSampler,), {"name": name}))


@dataclass(frozen=True)
class TaskDemonstrations:
    """The examples of a task, and how demonstrations are chosen from them.

    Attributes:
        settings: the choice.
        documents: the documents of the pool.
        examples: the documents to evaluate and the pool, as texts and answers.
        count: demonstrations in a prompt.
    """

    settings: Demonstrations
    documents: Sequence[Document]
    examples: ExampleSets
    count: int


def read_demonstrations(
    task: ConfigurableTask, settings: Demonstrations | None, limit: int | None
) -> TaskDemonstrations | None:
    """Return what the demonstrations of a task are chosen from; None leaves them to the harness.

    Args:
        task: a task whose number of demonstrations is set.
        settings: the choice; None takes the task's sampler.
        limit: the most documents to evaluate.

    Raises:
        UserError: the task has too few examples to choose from.
    """
    sampler = getattr(task, "sampler", None)
    if settings is None and isinstance(sampler, NamedSampler):
        settings = DEMONSTRATIONS[sampler.name]()
    count = task.config.num_fewshot
    if settings is None or not count:
        return None
    if sampler is None:
        raise UserError(f"task {task.config.task} has no examples to choose demonstrations from; set its fewshot_split")
    documents = list(sampler.fewshot_docs())
    fewshot = task.fewshot_cfg
    pool = [_example(task, document, fewshot.doc_to_text, fewshot.doc_to_target) for document in documents]
    queries = [_example(task, document) for document in islice(task.eval_docs, limit)]
    examples = ExampleSets(queries, pool)
    try:
        check_pool(examples, count)
    except UserError as error:
        raise UserError(f"task {task.config.task}: {error}") from None
    return TaskDemonstrations(settings, documents, examples, count)


def set_demonstrations(
    task: ConfigurableTask, demonstrations: TaskDemonstrations, seed: int, model: EvaluationModel
) -> None:
    """Choose the demonstrations of a task's documents, with the seed of random choices and the evaluated model."""
    examples = demonstrations.examples
    chosen = demonstrations.settings.choose(examples, demonstrations.count, seed, model)
    sampler = ChosenSampler(demonstrations.documents, dict(zip(examples.queries, chosen, strict=True)))
    build_prompt = task.fewshot_context

    # The harness tells a sampler the document only if it takes the demonstrations from the same split.
    def build_with_query(doc: Document, *arguments: object, **options: object) -> object:
        sampler.query = _example(task, doc)
        return build_prompt(doc, *arguments, **options)

    task.sampler = sampler
    task.fewshot_context = build_with_query


def _example(task: ConfigurableTask, document: Document, doc_to_text: Any = None, doc_to_target: Any = None) -> Example:
    """Return the text and the answer of a document. The text of a task with several contexts is all of them."""
    text = task.doc_to_text(document, doc_to_text)
    if task.multiple_input:
        text = " ".join(task.doc_to_choice(document))
    return Example(str(text), str(task.doc_to_target(document, doc_to_target)))
