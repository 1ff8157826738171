"""Dense passage retrieval: rank the passage that answers a query above all others (Karpukhin et al. 2020, §3)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.head_config import HeadConfig
from t5x_lite.objectives.features import stacked
from t5x_lite.objectives.model_protocols import Array, Batch, DropoutKey, LossSettings, LossSums
from t5x_lite.objectives.objective import ExampleContext, Features
from t5x_lite.objectives.passages import build_passage_features, build_query_features, first_passages, read_passages
from t5x_lite.objectives.supervised import Pooled, Record, TaskTokenizer, pooled_states
from t5x_lite.schema import Int, setting


class Retrieval(Pooled):
    """Rank the passage of each query first, by the inner product of their pooled states.

    Roles: `query`, `positive` (a passage, or a list whose first one counts) and optionally `negatives`, a list of hard
    negatives, best first. A passage is a text or an object with `text` and `title`.

    The negatives of a query are all other passages of the global batch, across all devices: the positives of the other
    queries, and the hard negatives of all queries. With `train.microbatches` they are those of a microbatch.

    Features: those of `build_text_features` for the query, the positive and each hard negative, `[2 + negatives,
    seq_len]`; `passage_weights` float32 `[1 + negatives]`, 0 where a record has fewer hard negatives; `loss_weights`, a
    float32 scalar.
    """

    name: ClassVar[str] = "retrieval"
    roles: ClassVar[tuple[str, ...]] = ("query", "positive")
    optional_roles: ClassVar[tuple[str, ...]] = ("negatives",)
    checks_records: ClassVar[bool] = True
    compares_rows: ClassVar[bool] = True

    negatives: Int = setting(
        1, "hard negatives of a query, the first of its record", ge=0, source="Karpukhin et al. 2020, §5.2"
    )
    normalize: bool = setting(False, "compare by the cosine instead of the inner product")
    temperature: float = setting(1.0, "divisor of the inner products", gt=0, source="1: Karpukhin et al. 2020, eq. 2")

    @property
    def texts(self) -> int:
        return 2 + self.negatives

    def head(self, model: ModelConfig) -> HeadConfig:
        """Return a head that pools the states and scores nothing."""
        pool = super().head(model).pool
        return HeadConfig(outputs=0, pool=pool, normalize=self.normalize)

    def check_record(self, record: Record) -> None:
        """Refuse a record without a query or without a positive passage."""
        if not isinstance(record["query"], str) or not record["query"].strip():
            raise ValueError("`query` is not a text, or an empty one")
        if not read_passages(record["positive"]):
            raise ValueError("`positive` is empty, so that no passage is right; remove the record")
        read_passages(record.get("negatives"))

    def examples(self, record: Record, tokenizer: TaskTokenizer, context: ExampleContext) -> list[Features]:
        self.check_record(record)
        positive = read_passages(record["positive"])[0]
        negatives = first_passages(read_passages(record.get("negatives")), self.negatives)
        texts = [build_query_features(record["query"], tokenizer.encode, context)]
        for passage in (positive, *negatives):
            # A query in the place of a missing passage has the right shapes; its weight is 0.
            texts.append(texts[0] if passage is None else build_passage_features(passage, tokenizer.encode, context))
        features = stacked(texts)
        features["passage_weights"] = np.array([1, *(passage is not None for passage in negatives)], np.float32)
        features["loss_weights"] = np.array(1, np.float32)
        return [features]

    def scores(self, model: Any, batch: Batch, key: DropoutKey = None) -> dict[str, Array]:
        """Return the scores of each query with the passages of its record, `[batch, 1 + negatives]`."""
        import jax.numpy as jnp

        from t5x_lite.models.vectors import MASKED_SCORE

        queries, passages = _embed(model, batch, key)
        scores = jnp.einsum("bd,bpd->bp", queries, passages)
        return {"scores": jnp.where(batch["passage_weights"] > 0, scores, MASKED_SCORE)}

    def loss(self, model: Any, batch: Batch, key: DropoutKey, settings: LossSettings) -> Mapping[str, LossSums]:
        """Return -log softmax of the positive's score among all passages of the batch (eq. 2)."""
        from t5x_lite.models.losses import passage_cross_entropy

        queries, passages = _embed(model, batch, key)
        is_passage = (batch["passage_weights"] > 0) & (batch["loss_weights"] > 0)[:, None]
        weights = batch["loss_weights"]
        return {"loss": passage_cross_entropy(queries, passages, is_passage, weights, self.temperature)}

    def reference(self, record: Record) -> int:
        """Return 0: the positive is the first of the passages."""
        return 0


def _embed(model: Any, batch: Batch, key: DropoutKey) -> tuple[Array, Array]:
    """Return the vectors of the queries `[batch, embed]` and of the passages `[batch, passages, embed]`, in float32."""
    import jax
    import jax.numpy as jnp

    texts = {name: feature for name, feature in batch.items() if feature.ndim == 3}
    passage_encoder = getattr(model, "passage_encoder", None)
    rows = len(batch["loss_weights"])
    if passage_encoder is None:
        vectors = pooled_states(model, texts, key).astype(jnp.float32)
        vectors = vectors.reshape(rows, -1, vectors.shape[-1])
        return vectors[:, 0], vectors[:, 1:]
    passage_key = None if key is None else jax.random.fold_in(key, 1)
    queries = pooled_states(model, {name: feature[:, :1] for name, feature in texts.items()}, key)
    passages = {name: feature[:, 1:] for name, feature in texts.items()}
    passage_vectors = pooled_states(passage_encoder, passages, passage_key).astype(jnp.float32)
    return queries.astype(jnp.float32), passage_vectors.reshape(rows, -1, queries.shape[-1])
