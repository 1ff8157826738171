"""Demonstrations whose vectors are nearest."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from t5x_lite.evaluate.demonstrations.demonstrations import Demonstrations, ExampleSets, nearest_last
from t5x_lite.models.config import ModelConfig
from t5x_lite.schema import Int, setting

if TYPE_CHECKING:
    from t5x_lite.evaluate.evaluation_model import EvaluationModel


class Similar(Demonstrations):
    """The examples nearest to the query, by the cosine of the model's vectors, the nearest last (Liu et al. 2022)."""

    pool: str | None = setting(None, "mean, cls or max of a text's tokens; null takes what the model was trained for")
    layer: Int | None = setting(None, "layer of the states, counted from 1, or from the end as -1; null is the last")

    def problems(self) -> Iterator[str]:
        """Yield an error for a pool that gives no vector of a text."""
        if self.pool not in {None, "mean", "cls", "max"}:
            yield f"pool {self.pool!r} is not one of mean, cls, max"

    def model_problems(self, model: ModelConfig) -> Iterator[str]:
        """Yield an error for a first token that does not stand for a text."""
        if self.pool == "cls" and model.query_stream:
            yield "demonstrations: pool cls takes the first token, and XLNet's [CLS] is the last one; take mean or max"
        if self.pool == "cls" and model.family == "decoder":
            yield "demonstrations: pool cls: the first token of a decoder sees no other; take mean or max"

    def choose(self, examples: ExampleSets, count: int, seed: int, model: "EvaluationModel") -> list[list[int]]:
        """Embed the texts of all examples once, and take the nearest of each query."""
        queries = self._directions(model, [example.text for example in examples.queries])
        pool = self._directions(model, [example.text for example in examples.pool])
        chosen = []
        for query, direction in enumerate(queries):
            chosen.append(nearest_last(pool @ direction, examples.candidates(query), count))
        return chosen

    def _directions(self, model: "EvaluationModel", texts: list[str]) -> Float[np.ndarray, "texts d"]:
        """Return vectors of length 1."""
        from t5x_lite.evaluate.embed import embed

        vectors = np.asarray(embed(model, texts, self.pool, self.layer), np.float64)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
