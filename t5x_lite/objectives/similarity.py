"""Sentence embeddings from pairs: two texts through one encoder (SBERT: Reimers & Gurevych 2019, §3)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np

from t5x_lite.models.config import Family, ModelConfig
from t5x_lite.models.head_config import HeadConfig
from t5x_lite.objectives.model_protocols import Array, Batch, DropoutKey, LossSettings, LossSums, TaskModel
from t5x_lite.objectives.objective import ExampleContext, Features
from t5x_lite.objectives.special_tokens import build_batch_features
from t5x_lite.objectives.supervised import Record, Supervised, TaskTokenizer, finite_number, label_index, pooled_states
from t5x_lite.schema import Strings, setting


class Similarity(Supervised):
    """Predict the relation of two texts from their embeddings u and v.

    It is a class, by softmax(W[u; v; |u - v|]), or a number, by the cosine of u and v. Roles: `text`, `second` and
    `label`.

    Features: those of `build_text_features` for each text, `[2, seq_len]`; `targets` (int32 for a class, float32 for a
    number) and `loss_weights` float32, scalars.
    """

    name: ClassVar[str] = "similarity"
    families: ClassVar[tuple[Family, ...]] = ("encoder",)
    roles: ClassVar[tuple[str, ...]] = ("text", "second", "label")
    texts: ClassVar[int] = 2

    by: Literal["classes", "cosine"] = setting("classes", "relation of a pair: a class, or a number by the cosine")
    labels: Strings = setting((), "names of the classes")
    largest: float = setting(5.0, "label of a pair whose cosine is 1", gt=0, source="STS-B: 0 to 5")
    pool: Literal["mean", "first", "max"] = setting("mean", "pooling of a text's states", source="SBERT, Table 6")

    def problems(self) -> Iterator[str]:
        """Yield an error if classes have no names."""
        if self.by == "classes" and len(self.labels) < 2:
            yield "objective similarity by classes needs their `labels`"

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(self.labels)

    def head(self, model: ModelConfig) -> HeadConfig:
        """Return a head that scores classes from three vectors; the cosine needs no scores."""
        outputs = len(self.labels) if self.by == "classes" else 0
        return HeadConfig(outputs=outputs, pool=self.pool, parts=3)

    def examples(self, record: Record, tokenizer: TaskTokenizer, context: ExampleContext) -> list[Features]:
        texts = [[tokenizer.encode(str(record[role]))] for role in ("text", "second")]
        features = build_batch_features(texts, context)
        features["targets"] = self._target(record)
        features["loss_weights"] = np.array(1, np.float32)
        return [features]

    def _target(self, record: Record) -> np.ndarray:
        if self.by == "classes":
            return np.array(label_index(record["label"], self.labels), np.int32)
        return np.array(finite_number(record["label"]) / self.largest, np.float32)

    def scores(self, model: TaskModel, batch: Batch, key: DropoutKey = None) -> dict[str, Array]:
        """Return the pooled states of the two texts."""
        vectors = pooled_states(model, batch, key)
        pairs = vectors.reshape(-1, 2, vectors.shape[-1])
        return {"first": pairs[:, 0], "second": pairs[:, 1]}

    def loss(self, model: TaskModel, batch: Batch, key: DropoutKey, settings: LossSettings) -> Mapping[str, LossSums]:
        """Return the cross-entropy over the classes, or the squared error of the cosine."""
        import jax.numpy as jnp

        from t5x_lite.models.losses import class_cross_entropy, squared_error
        from t5x_lite.models.vectors import cosine_similarity

        vectors = self.scores(model, batch, key)
        first = vectors["first"]
        second = vectors["second"]
        targets = batch["targets"]
        weights = batch["loss_weights"]
        if self.by == "cosine":
            return {"loss": squared_error(cosine_similarity(first, second), targets, weights)}
        scores = model.head(jnp.concatenate([first, second, abs(first - second)], axis=-1), key)
        return {"loss": class_cross_entropy(scores, targets, weights)}

    def prediction(self, record: Record, examples: Sequence[Features], scores: Sequence[Features]) -> float:
        """Return the cosine, also for a model that has learnt classes: embeddings are compared by it."""
        first = scores[0]["first"].astype(np.float64)
        second = scores[0]["second"].astype(np.float64)
        norms = float(np.linalg.norm(first) * np.linalg.norm(second))
        return float(first @ second) / max(norms, 1e-12)

    def reference(self, record: Record) -> float:
        """Return the label as a number."""
        return float(self._target(record))
