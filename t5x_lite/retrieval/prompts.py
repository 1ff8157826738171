"""Passages before prompts: retrieval-augmented generation without training (Ram et al. 2023, §3)."""

from collections.abc import Sequence
from pathlib import Path

import t5x_lite
from t5x_lite.retrieval.collection import StoredPassage
from t5x_lite.retrieval.config import Passages
from t5x_lite.retrieval.retriever import Retriever

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
        self._retriever = Retriever(t5x_lite.load(settings.retriever), Path(settings.index))
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


def augment_prompts(settings: Passages | None, prompts: Sequence[str]) -> Sequence[str]:
    """Return prompts after the passages that are nearest to each; without settings, the prompts as they are."""
    if settings is None:
        return prompts
    return PassagePrompts(settings).augment(prompts)
