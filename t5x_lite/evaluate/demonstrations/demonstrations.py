"""The interface of a choice of demonstrations: the solved examples before the example to solve."""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

from t5x_lite.errors import UserError
from t5x_lite.models.config import ModelConfig
from t5x_lite.schema import Config

if TYPE_CHECKING:
    from t5x_lite.evaluate.evaluation_model import EvaluationModel


class Example(NamedTuple):
    """An example of a task.

    Attributes:
        text: what the model is asked.
        answer: the right answer, or the label.
    """

    text: str
    answer: str


class ExampleSets:
    """The examples to solve, and those that may be shown before them.

    Attributes:
        queries: examples to solve.
        pool: examples to choose from.
    """

    def __init__(self, queries: Sequence[Example], pool: Sequence[Example]) -> None:
        self.queries = queries
        self.pool = pool

    @cached_property
    def _places(self) -> dict[Example, list[int]]:
        """The indices of each example in the pool."""
        places = defaultdict(list)
        for index, example in enumerate(self.pool):
            places[example].append(index)
        return dict(places)

    def count_candidates(self, query: int) -> int:
        """Return the number of `candidates` of a query."""
        return len(self.pool) - len(self._places.get(self.queries[query], []))

    def candidates(self, query: int) -> list[int]:
        """Return the indices of the pool for a query, without the query itself, however often the pool has it."""
        excluded = set(self._places.get(self.queries[query], []))
        return [index for index in range(len(self.pool)) if index not in excluded]


class Demonstrations(Config):
    """A choice of demonstrations with its settings.

    One is one file: a class of this kind and an entry in `DEMONSTRATIONS`. An example is never among its own
    demonstrations, provided that `choose` takes them from `ExampleSets.candidates`.
    """

    def model_problems(self, model: ModelConfig) -> Iterator[str]:
        """Yield why a model cannot choose this way."""
        yield from ()

    @abstractmethod
    def choose(self, examples: ExampleSets, count: int, seed: int, model: "EvaluationModel") -> list[list[int]]:
        """Return the indices of `count` examples of the pool for each query, in the order of the prompt.

        Args:
            examples: the queries and the pool.
            count: demonstrations of each query.
            seed: seed of random choices; one for a query depends on the seed and the number of the query.
            model: the model that is evaluated.
        """


def check_pool(examples: ExampleSets, count: int) -> None:
    """Refuse a pool with fewer than `count` demonstrations for some query.

    Raises:
        UserError: with the number of examples.
    """
    for query, example in enumerate(examples.queries):
        available = examples.count_candidates(query)
        if available < count:
            raise UserError(
                f"{count} demonstrations are to be chosen from {available} examples, without the example itself: "
                f"{example.text[:60]!r}; lower num_fewshot or add examples"
            )


def nearest_last(scores: Float[np.ndarray, "pool"], candidates: Sequence[int], count: int) -> list[int]:
    """Return the `count` candidates with the highest scores, the highest last; of equal ones the first in the pool."""
    indices = np.asarray(candidates)
    ordered = indices[np.argsort(-scores[indices], kind="stable")]
    return ordered[:count][::-1].tolist()
