"""The objective of dense retrieval: its examples by hand, its loss by equation 2 of Karpukhin et al. 2020 in NumPy."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.losses import LossSettings
from t5x_lite.models.outputs import TaskOutput
from t5x_lite.objectives.passages import Passage, build_passage_features, build_query_features
from t5x_lite.objectives.retrieval import Retrieval
from tests.objectives.test_supervised import TOKENIZER, words
from tests.objectives.vocabulary import context

CLS = 3
SEP = 4


class WordVectors:
    """A model whose states are rows of a table, and whose head takes the first token after [CLS]."""

    def __init__(self, table: np.ndarray, passage_encoder: "WordVectors | None" = None) -> None:
        self.table = jnp.asarray(table)
        self.head = self
        self.passage_encoder = passage_encoder

    def __call__(self, tokens: Any, **_: Any) -> Any:
        return self.table[tokens]

    def pooled(self, states: Any, tokens: Any, segments: Any, key: Any = None) -> Any:
        return states[:, 1]


def example(objective: Retrieval, record: dict[str, Any], seq_len: int = 8) -> dict[str, np.ndarray]:
    (features,) = objective.examples(record, TOKENIZER, context(seq_len, "encoder"))
    return dict(features)


def batch_of(objective: Retrieval, records: list[dict[str, Any]]) -> dict[str, Any]:
    examples = [example(objective, record) for record in records]
    return {name: jnp.stack([features[name] for features in examples]) for name in examples[0]}


def test_an_example_is_the_query_its_passage_and_its_hard_negatives() -> None:
    titled = {"title": words(30), "text": words(31, 32), "score": 7.5}
    record = {"query": words(10, 11), "positive": titled, "negatives": [words(40), words(41), words(42)]}
    features = example(Retrieval(negatives=2), record)
    assert features["tokens"].tolist() == [
        [CLS, 10, 11, SEP, 0, 0, 0, 0],
        [CLS, 30, SEP, 31, 32, SEP, 0, 0],
        [CLS, 40, SEP, 0, 0, 0, 0, 0],
        [CLS, 41, SEP, 0, 0, 0, 0, 0],
    ]
    assert features["passage_weights"].tolist() == [1, 1, 1]
    # DPR's lists: the first positive counts, and a record may have fewer hard negatives than others.
    record = {"query": words(10), "positive": [titled, words(50)], "negatives": []}
    features = example(Retrieval(negatives=1), record)
    assert features["tokens"][1].tolist() == [CLS, 30, SEP, 31, 32, SEP, 0, 0]
    assert features["passage_weights"].tolist() == [1, 0]
    assert features["loss_weights"] == 1
    # As an index reads them.
    for features in (
        build_query_features(words(10, 11), TOKENIZER.encode, context(8, "encoder")),
        build_passage_features(Passage(words(10, 11)), TOKENIZER.encode, context(8, "encoder")),
    ):
        assert features["tokens"].tolist() == [CLS, 10, 11, SEP, 0, 0, 0, 0]


@pytest.mark.parametrize("towers", [1, 2])
def test_the_loss_is_equation_2_over_all_passages_of_the_batch(towers: int) -> None:
    rng = np.random.default_rng(0)
    query_table, passage_table = rng.normal(size=(2, 200, 5)).astype(np.float32)
    model = WordVectors(query_table, WordVectors(passage_table))
    if towers == 1:
        passage_table = query_table
        model = WordVectors(query_table)
    objective = Retrieval(negatives=1, temperature=0.7)
    records = [
        {"query": words(10), "positive": words(20), "negatives": [words(30)]},
        {"query": words(11), "positive": words(21), "negatives": []},
        {"query": words(12), "positive": words(22), "negatives": [words(32)]},
        {"query": words(13), "positive": words(23), "negatives": [words(33)]},
    ]
    batch = batch_of(objective, records)
    batch["loss_weights"] = jnp.array([1.0, 1, 1, 0])  # the last one fills the batch up
    losses = []
    correct = 0
    passages = passage_table[[20, 30, 21, 22, 32]].astype(np.float64)
    for query, positive in ((10, 20), (11, 21), (12, 22)):
        scores = passages @ query_table[query] / 0.7
        positive_score = passage_table[positive].astype(np.float64) @ query_table[query] / 0.7
        losses.append(-np.log(np.exp(positive_score) / np.exp(scores).sum()))
        correct += positive_score == scores.max()
    loss = objective.loss(model, batch, None, LossSettings(200))["loss"]
    assert float(loss.loss) == pytest.approx(sum(losses), rel=1e-5)
    assert float(loss.total) == float(loss.loss)
    assert float(loss.weight) == 3
    assert float(loss.correct) == correct
    scores = np.asarray(objective.scores(model, batch)["scores"])
    assert scores[0] == pytest.approx([passage_table[n] @ query_table[10] for n in (20, 30)], rel=1e-5)
    assert scores[1].argmax() == 0  # the missing negative never wins


@pytest.mark.parametrize("is_normalized", [False, True])
def test_normalize_compares_by_the_cosine(is_normalized: bool) -> None:
    table = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    objective = Retrieval(negatives=1, pool="mean", normalize=is_normalized)
    config = ModelConfig(layers=1, embed=5, heads=1, vocab=200, family="encoder")
    model = WordVectors(table)
    model.head = TaskOutput(config, objective.head(config), rngs=nnx.Rngs(0))  # type: ignore[assignment]
    batch = batch_of(objective, [{"query": words(10), "positive": words(20), "negatives": [words(30)]}])
    query, positive, negative = (table[[CLS, word, SEP]].mean(0) for word in (10, 20, 30))
    expected = np.array([query @ positive, query @ negative])
    if is_normalized:
        lengths = np.linalg.norm([positive, negative], axis=1)
        expected = expected / np.linalg.norm(query) / lengths
    np.testing.assert_allclose(objective.scores(model, batch)["scores"][0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"query": "", "positive": "w1"}, "`query` is not a text"),
        ({"query": ["w1"], "positive": "w1"}, "`query` is not a text"),
        ({"query": "w1", "positive": []}, "`positive` is empty"),
        ({"query": "w1", "positive": None}, "`positive` is empty"),
        ({"query": "w1", "positive": " "}, "a passage is empty"),
        ({"query": "w1", "positive": "w2", "negatives": [3]}, "expected a text, or an object"),
    ],
)
def test_records_that_teach_nothing_are_refused(record: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Retrieval().check_record(record)
