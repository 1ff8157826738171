"""Demonstrations with as many of each answer."""

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from t5x_lite.evaluate.demonstrations.demonstrations import Demonstrations, ExampleSets

if TYPE_CHECKING:
    from t5x_lite.evaluate.evaluation_model import EvaluationModel


class Balanced(Demonstrations):
    """Examples drawn at random, as many of each label: an uneven number biases the answers (Zhao et al. 2021)."""

    def choose(self, examples: ExampleSets, count: int, seed: int, model: "EvaluationModel") -> list[list[int]]:
        """Draw an example of each label in turn, until there are enough; the labels are in random order too."""
        chosen = []
        for query in range(len(examples.queries)):
            rng = np.random.default_rng((seed, query))
            by_label = defaultdict(list)
            for index in rng.permutation(examples.candidates(query)).tolist():
                by_label[examples.pool[index].answer].append(index)
            labels = [list(by_label)[number] for number in rng.permutation(len(by_label))]
            in_turn: list[int] = []
            while len(in_turn) < count:
                in_turn.extend(by_label[label].pop() for label in labels if by_label[label])
            chosen.append(rng.permutation(in_turn[:count]).tolist())
        return chosen
