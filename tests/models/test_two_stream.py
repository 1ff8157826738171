"""Two-stream attention: what each stream depends on, in rows with padding, several documents, and in chunks."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from jaxtyping import Array, Float

from t5x_lite.evaluate.masked_tokens import PermutedTokens
from t5x_lite.models.attention import layer
from t5x_lite.models.attention.context import AttentionSettings, BlockLimits
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.transformer import Encoder
from t5x_lite.objectives.special_tokens import SpecialTokensTemplate
from tests.models.weights import random_model

LENGTH = 12
VOCAB = 19
CONFIG = ModelConfig.model_validate(
    {
        "family": "encoder",
        "layers": 2,
        "embed": 16,
        "heads": 2,
        "vocab": VOCAB,
        "positions": {"transformer_xl": {"segments": True}},
        "query_stream": True,
    }
)
RANK = np.array([-1, 3, -1, 0, -1, 1, -1, 2, -1, -1, -1, -1])
PREDICTED = np.flatnonzero(RANK >= 0)
TOKENS = np.random.default_rng(0).integers(0, VOCAB - 1, (1, LENGTH))


@pytest.fixture(scope="module")
def model() -> Encoder:
    return random_model(CONFIG)


def predict(
    model: Encoder, tokens: np.ndarray, predicted: np.ndarray, rank: np.ndarray, **features: np.ndarray
) -> Float[np.ndarray, "p d"]:
    @jax.jit
    def run(tokens: Array, predicted: Array, rank: Array, features: dict[str, Array]) -> Array:
        return model.predict_in_order(tokens, predicted, rank, **features)

    return np.asarray(run(tokens, predicted[None], rank[None], features))[0]


def test_a_prediction_depends_on_the_tokens_before_it_in_the_order_and_no_others(model: Encoder) -> None:
    states = predict(model, TOKENS, PREDICTED, RANK)
    for place in range(LENGTH):
        changed = TOKENS.copy()
        changed[0, place] = VOCAB - 1
        differences = np.abs(predict(model, changed, PREDICTED, RANK) - states).max(axis=1)
        for number, predicted in enumerate(PREDICTED):
            comes_before = RANK[place] < RANK[predicted]
            assert (differences[number] > 1e-3) == comes_before, (place, predicted)
            assert comes_before or differences[number] == 0


def test_unused_entries_and_padding_change_nothing(model: Encoder) -> None:
    """Unused entries are at place 0, which may be predicted too."""
    rank = RANK.copy()
    rank[0] = 4
    predicted = np.flatnonzero(rank >= 0)
    states = predict(model, TOKENS, predicted, rank)
    longer = np.concatenate([TOKENS, np.full((1, 3), 7)], axis=1)
    padded = predict(
        model,
        longer,
        np.concatenate([predicted, [0, 0]]),
        np.concatenate([rank, [9, 10, 11]]),
        segment_ids=np.array([[1] * LENGTH + [0] * 3]),
    )
    np.testing.assert_allclose(padded[: len(predicted)], states, atol=1e-5)


def test_documents_of_a_row_are_predicted_as_rows_of_their_own(model: Encoder) -> None:
    """The first document is all predicted: its first token in the order sees nothing, and nothing of the second."""
    rank = np.array([2, 0, 1, 5, -1, 4, -1, -1, 3, -1, -1, -1])
    types = np.array([[0, 0, 1, 0, 0, 0, 1, 1, 1, 1, 2, 2]])
    predicted = np.flatnonzero(rank >= 0)
    segments = np.array([[1] * 3 + [2] * 9])
    states = predict(model, TOKENS, predicted, rank, segment_ids=segments, token_types=types)
    first = predict(model, TOKENS[:, :3], predicted[:3], rank[:3], token_types=types[:, :3])
    second = predict(model, TOKENS[:, 3:], predicted[3:] - 3, rank[3:], token_types=types[:, 3:])
    np.testing.assert_allclose(states, np.concatenate([first, second]), atol=1e-5)


@pytest.mark.slow
def test_chunks_of_a_long_row_have_the_states_of_one_piece(model: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    types = np.array([[0] * 5 + [1] * 7])
    states = predict(model, TOKENS, PREDICTED, RANK, token_types=types)
    settings = layer.attention_settings

    def in_chunks(*arguments: object) -> AttentionSettings:
        return replace(settings(*arguments), limits=BlockLimits(max_scores=16, chunk_bytes=4 * 2 * LENGTH * 5))

    monkeypatch.setattr(layer, "attention_settings", in_chunks)
    chunked = predict(random_model(CONFIG), TOKENS, PREDICTED, RANK, token_types=types)
    np.testing.assert_allclose(chunked, states, atol=1e-5)


@pytest.mark.slow
def test_a_hidden_token_is_scored_without_being_seen(model: Encoder) -> None:
    """`10 11 12 <sep> <cls>` with 11 and 12 hidden: the score of 11 depends on 10 alone."""
    masker = PermutedTokens(SpecialTokensTemplate((), 4, (3,)))
    features = masker.features(np.array([10, 11, 12], np.int32), slice(1, 3))
    assert features["tokens"].tolist() == [10, 11, 12, 4, 3]
    assert features["rank"].tolist() == [-1, 0, 1, -1, -1]
    assert features["types"].tolist() == [0, 0, 0, 0, 2]
    assert masker.template.size(1) == 2

    @jax.jit
    def score(batch: dict[str, Array]) -> Array:
        return masker.logits(model, batch)

    scores = []
    for text in ([10, 11, 12], [10, 13, 14], [9, 11, 12]):
        row = masker.features(np.array(text, np.int32), slice(1, 3))
        scores.append(np.asarray(score({name: values[None] for name, values in row.items()})))
    np.testing.assert_array_equal(scores[0], scores[1])
    assert np.abs(scores[0] - scores[2]).max() > 1e-3
