"""Passages before prompts: retrieval-augmented generation without training (Ram et al. 2023, §3)."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import t5x_lite
from t5x_lite.errors import UserError
from t5x_lite.retrieval.collection import StoredPassage
from t5x_lite.retrieval.config import Passages
from t5x_lite.retrieval.index import Index
from t5x_lite.retrieval.retriever import Retriever
from t5x_lite.run_dir import open_run

SEPARATOR = "\n\n"
"""Text between two passages."""


class PassagePrompts:
    """Puts the passages that are retrieved for a query before a prompt, best first.

    Args:
        settings: the index, the retriever, and the form.

    Raises:
        UserError: no such run or index, an index for another model, or one with too few passages.
    """

    def __init__(self, settings: Passages) -> None:
        self.settings = settings
        self._retriever = _open_retriever(settings.retriever, settings.index)
        self._retriever.check_depth(settings.count, "passages")

    def retrieve(self, queries: Sequence[str]) -> list[list[StoredPassage]]:
        """Return the passages of each query, best first."""
        return [[stored for _, stored in passages] for passages in self._retriever(queries, self.settings.count)]

    def write(self, prompt: str, passages: Sequence[StoredPassage]) -> str:
        """Return a prompt after passages."""
        text = SEPARATOR.join(str(stored.passage) for stored in passages)
        before, _, after = self.settings.template.partition("{prompt}")
        return before.replace("{passages}", text) + prompt + after.replace("{passages}", text)

    def augment(self, prompts: Sequence[str]) -> list[str]:
        """Return each prompt after the passages that are nearest to it."""
        return [self.write(prompt, passages) for prompt, passages in zip(prompts, self.retrieve(prompts), strict=True)]


@lru_cache(maxsize=1)
def _open_retriever(run: str, index: str) -> Retriever:
    """Open a retriever once for all tasks of an evaluation."""
    return Retriever(t5x_lite.load(run), Path(index))


def check_passages(settings: Passages) -> None:
    """Check that the index is complete and has enough passages, and that the retriever is a run.

    Raises:
        UserError: with what is missing.
    """
    open_run(settings.retriever)
    index = Index(Path(settings.index))
    if len(index) < settings.count:
        raise UserError(f"index {settings.index}: has {len(index)} passages, and passages.count is {settings.count}")


def augment_prompts(settings: Passages | None, prompts: Sequence[str]) -> Sequence[str]:
    """Return prompts after the passages that are nearest to each; without settings, the prompts as they are."""
    if settings is None:
        return prompts
    return PassagePrompts(settings).augment(prompts)
