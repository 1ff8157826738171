"""Sentence embeddings from pairs: two texts through one encoder (SBERT: Reimers & Gurevych 2019, §3)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from t5x_lite.models.config import Family, HeadConfig, ModelConfig
from t5x_lite.objectives.objective import ExampleContext, Features, Losses
from t5x_lite.objectives.supervised import Coder, Record, Supervised, label_index, pooled, several
from t5x_lite.schema import Strings, setting


class Similarity(Supervised):
    """Roles `text`, `second` and `label`: a class (softmax(W[u; v; |u - v|])), or a number (their cosine).

    Features: those of `framed` for each text, `[2, seq_len]`; `targets`, `loss_weights`, scalars.
    """

    name: ClassVar[str] = "similarity"
    families: ClassVar[tuple[Family, ...]] = ("encoder",)
    roles: ClassVar[tuple[str, ...]] = ("text", "second", "label")
    texts: ClassVar[int] = 2

    by: Literal["classes", "cosine"] = setting("classes", "what is learnt from a pair")
    labels: Strings = setting((), "names of the classes")
    largest: float = setting(5.0, "the label that stands for a cosine of 1", gt=0, source="STS-B: 0 to 5")
    pool: Literal["mean", "first", "max"] = setting("mean", "a text's states as one", source="SBERT, Table 6")

    def problems(self) -> Iterator[str]:
        """Classes without names."""
        if self.by == "classes" and len(self.labels) < 2:
            yield "objective similarity by classes needs their `labels`"

    def head(self, model: ModelConfig) -> HeadConfig:
        """Classes are scored from three vectors side by side; a cosine needs no scores."""
        return HeadConfig(outputs=len(self.labels) if self.by == "classes" else 0, pool=self.pool, parts=3)

    def examples(self, record: Record, coder: Coder, context: ExampleContext) -> list[Features]:
        rows = several([[coder.encode(str(record[role]))] for role in ("text", "second")], context)
        return [{**rows, "targets": self._target(record)}]

    def _target(self, record: Record) -> Any:
        if self.by == "classes":
            return np.asarray(label_index(record["label"], self.labels), np.int32)
        return np.asarray(float(record["label"]) / self.largest, np.float32)

    def scores(self, model: Any, batch: Mapping[str, Any], key: Any = None) -> dict[str, Any]:
        """The two vectors."""
        vectors = pooled(model, batch, key)
        both = vectors.reshape(-1, 2, vectors.shape[-1])
        return {"first": both[:, 0], "second": both[:, 1]}

    def loss(self, model: Any, batch: Mapping[str, Any], key: Any, losses: Losses) -> Mapping[str, Any]:
        """Cross-entropy over the classes, or the squared error of the cosine."""
        first, second = self.scores(model, batch, key).values()
        weights = batch["loss_weights"]
        if self.by == "classes":
            scores = model.head(losses.beside(first, second, abs(first - second)), None)
            return {"loss": losses.classes(scores, batch["targets"], weights)}
        return {"loss": losses.squared(losses.cosine(first, second), batch["targets"], weights)}

    def prediction(self, record: Record, examples: Sequence[Features], scores: Sequence[Features]) -> float:
        """Their cosine, whatever was learnt: it is what embeddings are compared by."""
        first, second = (scores[0][side].astype(np.float64) for side in ("first", "second"))
        norms = float(np.linalg.norm(first) * np.linalg.norm(second))
        return float(first @ second) / max(norms, 1e-12)

    def reference(self, record: Record) -> float:
        """The label as a number."""
        return float(self._target(record))
