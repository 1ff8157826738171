"""Passages before the contexts of lm-evaluation-harness's tasks."""

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from t5x_lite.errors import UserError
from t5x_lite.retrieval.collection import StoredPassage
from t5x_lite.retrieval.prompts import PassagePrompts


def check_questions(tasks: Mapping[str, Any]) -> None:
    """Refuse tasks whose documents have no question of their own, such as one of perplexity.

    Raises:
        UserError: with the name of the first such task.
    """
    for name, task in tasks.items():
        if task.OUTPUT_TYPE == "loglikelihood_rolling" or getattr(task, "multiple_input", 0):
            raise UserError(f"task {name} has no single question to retrieve passages for; leave out --index")


def put_passages(tasks: Mapping[str, Any], prompts: PassagePrompts, limit: int | None) -> None:
    """Put passages before the context of each document, few-shot examples included. The query is its own question.

    Args:
        tasks: the harness's tasks by name.
        prompts: retrieves the passages.
        limit: documents of each task that are evaluated; None takes all.

    Raises:
        UserError: a task whose documents have no question of their own, such as one of perplexity.
    """
    check_questions(tasks)
    for name, task in tasks.items():
        queries = []
        for document in islice(task.eval_docs, limit):
            query = task.doc_to_text(document)
            if not isinstance(query, str) or not query.strip():
                raise UserError(f"task {name}: a document has no question to retrieve passages for; leave out --index")
            queries.append(query)
        passages = dict(zip(queries, prompts.retrieve(queries), strict=True))
        task.construct_requests = _with_passages(task, prompts, passages)


def _with_passages(
    task: Any, prompts: PassagePrompts, passages: Mapping[str, list[StoredPassage]]
) -> Callable[..., Any]:
    """Return the task's `construct_requests` for contexts that begin with passages."""
    construct_requests = task.construct_requests

    def construct(doc: Mapping[str, Any], ctx: str, **options: Any) -> Any:
        return construct_requests(doc=doc, ctx=prompts.write(ctx, passages[task.doc_to_text(doc)]), **options)

    return construct
