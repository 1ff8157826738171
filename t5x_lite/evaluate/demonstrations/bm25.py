"""Demonstrations that share the rarest words."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from t5x_lite.evaluate.demonstrations.demonstrations import Demonstrations, ExampleSets, nearest_last
from t5x_lite.schema import setting

if TYPE_CHECKING:
    from t5x_lite.evaluate.evaluation_model import EvaluationModel

WORD = re.compile(r"\w+")


class BM25(Demonstrations):
    """The examples with the highest BM25 for the words of the query, the highest last (Rubin et al. 2022)."""

    k1: float = setting(1.2, "saturation of the count of a word", source="Robertson & Zaragoza 2009", ge=0)
    b: float = setting(0.75, "share of the normalisation by length", source="Robertson & Zaragoza 2009", ge=0, le=1)

    def choose(self, examples: ExampleSets, count: int, seed: int, model: "EvaluationModel") -> list[list[int]]:
        """Score the texts of the pool for each query."""
        index = WordIndex([example.text for example in examples.pool], self.k1, self.b)
        chosen = []
        for query, example in enumerate(examples.queries):
            chosen.append(nearest_last(index.scores(example.text), examples.candidates(query), count))
        return chosen


class WordIndex:
    """The weights of words in texts.

    The weight of a word with the count c in a text is idf · c (k1 + 1) / (c + k1 (1 - b + b · length / mean length))
    (Robertson & Zaragoza 2009). idf is ln(1 + (N - n + 0.5) / (n + 0.5)) for a word in n of N texts, Lucene's
    variant, which is never negative. Words are in lower case.
    """

    def __init__(self, texts: Sequence[str], k1: float, b: float) -> None:
        counts = [Counter(words_of(text)) for text in texts]
        lengths = [counter.total() for counter in counts]
        mean_length = max(sum(lengths) / max(len(texts), 1), 1)
        frequencies = Counter(word for counter in counts for word in counter)
        self._texts = len(texts)
        self._weights: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for text, (counter, length) in enumerate(zip(counts, lengths, strict=True)):
            saturation = k1 * (1 - b + b * length / mean_length)
            for word, count in counter.items():
                frequency = frequencies[word]
                idf = math.log(1 + (len(texts) - frequency + 0.5) / (frequency + 0.5))
                self._weights[word].append((text, idf * count * (k1 + 1) / (count + saturation)))

    def scores(self, query: str) -> Float[np.ndarray, "texts"]:
        """Return the sum of the weights of a query's words in each text; a word counts as often as the query has it."""
        total = np.zeros(self._texts)
        for word in words_of(query):
            for text, weight in self._weights.get(word, []):
                total[text] += weight
        return total


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return WORD.findall(text.lower())
