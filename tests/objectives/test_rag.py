"""Retrieval-augmented generation: examples by hand, the loss by its formula in NumPy and by Transformers' RagModel."""

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.errors import UserError
from t5x_lite.models.losses import LossSettings
from t5x_lite.objectives.rag import Rag
from tests.objectives.test_supervised import TOKENIZER, words
from tests.objectives.vocabulary import BOS, context, context_with_bos

EOS = 1
VOCAB = 200
RECORD = {
    "query": words(10, 11),
    "answer": [words(50, 51), words(60)],
    "passages": [
        {"text": words(20, 21, 22, 23, 24, 25, 26), "score": 2.0},
        {"title": words(30), "text": words(31), "score": 1},
        {"text": words(40), "score": -3.0},
    ],
}


class RandomLogits:
    """A language model whose logits are random numbers, whatever it reads."""

    def __init__(self, rows: int, length: int) -> None:
        self.values = np.random.default_rng(0).normal(size=(rows, length, VOCAB)).astype(np.float32)

    def __call__(self, *_: Any, **__: Any) -> Any:
        return jnp.asarray(self.values)

    def logits(self, states: Any) -> Any:
        return states


def batch_of(objective: Rag, *records: dict[str, Any]) -> dict[str, Any]:
    examples = [objective.examples(record, TOKENIZER, context(10, "encoder_decoder"))[0] for record in records]
    return {name: jnp.stack([jnp.asarray(features[name]) for features in examples]) for name in examples[0]}


def test_an_example_is_the_query_after_each_passage() -> None:
    (features,) = Rag(passages=4, target_len=4).examples(RECORD, TOKENIZER, context(10, "encoder_decoder"))
    assert features["tokens"].tolist() == [
        [20, 21, 22, 23, 24, 25, 26, 10, 11, EOS],
        [30, 31, 10, 11, EOS, 0, 0, 0, 0, 0],
        [40, 10, 11, EOS, 0, 0, 0, 0, 0, 0],
        [20, 21, 22, 23, 24, 25, 26, 10, 11, EOS],  # in the place of a passage that is missing
    ]
    assert features["targets"].tolist() == [[50, 51, EOS, 0]] * 4
    assert features["decoder_tokens"].tolist() == [[0, 50, 51, 0]] * 4
    assert features["answer_weights"].tolist() == [[1, 1, 1, 0]] * 4
    assert features["scores"].tolist() == [2, 1, -3, 0]
    assert features["passage_weights"].tolist() == [1, 1, 1, 0]
    # The passage is cut, and neither the query nor the answer.
    (features,) = Rag(passages=1, target_len=4).examples(RECORD, TOKENIZER, context(12, "decoder"))
    assert features["tokens"].tolist() == [[20, 21, 22, 23, 24, 25, 10, 11, 50, 51, 0, 0]]
    assert features["targets"][0, 7:10].tolist() == [50, 51, EOS]
    assert features["answer_weights"][0].tolist() == [0] * 7 + [1, 1, 1, 0, 0]


def test_the_loss_sums_the_probabilities_over_passages() -> None:
    other = {**RECORD, "answer": words(70), "passages": RECORD["passages"][:2]}
    objective = Rag(passages=3, target_len=5, temperature=2.0)
    batch = batch_of(objective, RECORD, other)
    model = RandomLogits(6, 5)
    loss = objective.loss(model, batch, None, LossSettings(VOCAB))["loss"]
    log_probabilities = model.values - np.log(np.exp(model.values).sum(-1, keepdims=True))
    expected = []
    for row, (answer, scores) in enumerate((([50, 51, EOS], [2.0, 1, -3]), ([70, EOS], [2.0, 1]))):
        prior = np.exp(np.array(scores) / 2) / np.exp(np.array(scores) / 2).sum()
        probability = 0.0
        for passage, weight in enumerate(prior):
            token_logs = [log_probabilities[3 * row + passage, i, token] for i, token in enumerate(answer)]
            probability += weight * np.exp(sum(token_logs))
        expected.append(-np.log(probability))
    assert float(loss.loss) == pytest.approx(sum(expected), rel=1e-5)
    assert float(loss.total) == float(loss.loss)
    assert float(loss.weight) == 2
    batch["loss_weights"] = jnp.array([1.0, 0])
    assert float(objective.loss(model, batch, None, LossSettings(VOCAB))["loss"].loss) == pytest.approx(expected[0])
    assert int(np.asarray(objective.scores(model, batch)["scores"])[1].argmax()) < 2  # never the missing passage


def test_the_loss_is_that_of_transformers_rag_sequence() -> None:
    torch = pytest.importorskip("torch", reason="needs the extra hf")
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    objective = Rag(passages=3, target_len=5)
    other = {**RECORD, "answer": words(70, 71, 72), "passages": RECORD["passages"][::-1]}
    batch = batch_of(objective, RECORD, other)
    model = RandomLogits(6, 5)
    generator = SimpleNamespace(pad_token_id=0, bos_token_id=None)
    rag = SimpleNamespace(config=SimpleNamespace(n_docs=3, generator=generator, bos_token_id=None))
    # Theirs are the decoder's inputs, which they shift left by one, so that the last target is padding.
    targets = torch.tensor(np.pad(np.asarray(batch["targets"])[:, 0], ((0, 0), (1, 0)))[:, :5]).long()
    get_nll = transformers.RagSequenceForGeneration.get_nll
    theirs = get_nll(rag, torch.tensor(model.values), torch.tensor(np.asarray(batch["scores"])), targets)
    loss = objective.loss(model, batch, None, LossSettings(VOCAB))["loss"]
    assert float(loss.loss) == pytest.approx(float(theirs.sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": " "}, "`query` is not a text"),
        ({"answer": []}, "`answer` is empty"),
        ({"passages": []}, "`passages` is not a list of passages"),
        ({"passages": words(1)}, "`passages` is not a list of passages"),
        ({"passages": [words(1)]}, "no number in `score`"),
        ({"passages": [{"text": words(1), "score": float("nan")}]}, "no number in `score`"),
    ],
)
def test_records_without_scored_passages_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rag().check_record({**RECORD, **change})


def test_rows_and_templates_without_room_are_refused() -> None:
    Rag(target_len=8).check_context(context(16, "decoder"))
    with pytest.raises(UserError, match="has no room for passages"):
        Rag(target_len=9).check_context(context(16, "decoder"))
    Rag(target_len=3).check_context(context_with_bos(16, "encoder_decoder"))
    with pytest.raises(UserError, match="no room for answers"):
        Rag(target_len=2).check_context(context_with_bos(16, "encoder_decoder"))
    with pytest.raises(ValueError, match="in it, once"):
        Rag(template="{passage}")


def test_inputs_are_between_what_the_tokenizer_puts_around_a_text() -> None:
    (features,) = Rag(passages=1, target_len=4).examples(RECORD, TOKENIZER, context_with_bos(10, "encoder_decoder"))
    assert features["tokens"].tolist() == [[BOS, 20, 21, 22, 23, 24, 25, 10, 11, EOS]]
    assert features["targets"].tolist() == [[BOS, 50, 51, EOS]]
    (features,) = Rag(passages=1, target_len=4).examples(RECORD, TOKENIZER, context_with_bos(10, "decoder"))
    assert features["tokens"].tolist() == [[BOS, 20, 21, 22, 10, 11, 50, 51, 0, 0]]
