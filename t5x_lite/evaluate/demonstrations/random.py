"""Demonstrations at random."""

from typing import TYPE_CHECKING

import numpy as np

from t5x_lite.evaluate.demonstrations.demonstrations import Demonstrations, ExampleSets

if TYPE_CHECKING:
    from t5x_lite.evaluate.evaluation_model import EvaluationModel


class Random(Demonstrations):
    """Examples drawn at random for each query (Brown et al. 2020, §2.4)."""

    def choose(self, examples: ExampleSets, count: int, seed: int, model: "EvaluationModel") -> list[list[int]]:
        """Draw without replacement."""
        chosen = []
        for query in range(len(examples.queries)):
            rng = np.random.default_rng((seed, query))
            chosen.append(rng.permutation(examples.candidates(query))[:count].tolist())
        return chosen
