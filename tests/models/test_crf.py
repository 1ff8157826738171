"""The CRF over tags against the enumeration of all sequences of tags, and the recurrence of a head."""

from itertools import pairwise, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t5x_lite.models.config import ModelConfig
from t5x_lite.models.crf import best_tags, log_likelihood
from t5x_lite.models.head_config import HeadConfig
from t5x_lite.models.outputs import TaskOutput

CLASSES = 3
WORDS = ([True, False, True, True, False, True], [False, True, False, False, True, False], [False] * 6)
"""Which tokens of three rows are the first of a word."""


def score_of(scores: np.ndarray, transitions: np.ndarray, tags: tuple[int, ...]) -> float:
    score = sum(float(scores[word, tag]) for word, tag in enumerate(tags))
    return score + sum(float(transitions[a, b]) for a, b in pairwise(tags))


def test_probabilities_and_the_best_tags_are_those_of_all_sequences() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3, 6, CLASSES)).astype(np.float32)
    transitions = 2 * rng.normal(size=(CLASSES, CLASSES)).astype(np.float32)
    tags = rng.integers(0, CLASSES, (3, 6))
    is_word = np.array(WORDS)
    actual = jax.jit(log_likelihood)(scores, transitions, tags, is_word)
    for row in range(2):
        words = scores[row][is_word[row]]
        sequences = list(product(range(CLASSES), repeat=len(words)))
        all_scores = [score_of(words, transitions, sequence) for sequence in sequences]
        score = score_of(words, transitions, tuple(tags[row][is_word[row]]))
        assert float(actual[row]) == pytest.approx(score - np.log(np.exp(all_scores).sum()), abs=1e-5)
        assert tuple(best_tags(words, transitions)) == sequences[int(np.argmax(all_scores))]
    assert float(actual[2]) == 0
    assert best_tags(scores[2][is_word[2]], transitions) == []


def test_a_recurrence_of_a_head_reads_a_text_in_both_directions_and_no_padding() -> None:
    mixer = {"lstm": {"hidden": [4], "bidirectional": True}}
    head = HeadConfig.model_validate({"outputs": CLASSES, "pool": "none", "mixer": mixer, "crf": True})
    config = ModelConfig(layers=1, embed=8, heads=2, vocab=9, family="decoder", head=head)
    output = TaskOutput(config, head, rngs=nnx.Rngs(0))
    pooled = jax.jit(output.pooled)
    states = jnp.asarray(np.random.default_rng(0).normal(size=(1, 7, 8)), jnp.float32)
    tokens = jnp.ones((1, 7), jnp.int32)
    segments = jnp.array([[1, 1, 1, 1, 1, 0, 0]])
    read = pooled(states, tokens, segments)
    assert read.shape == states.shape
    other_padding = states.at[:, 5:].add(1.0)
    np.testing.assert_allclose(pooled(other_padding, tokens, segments)[:, :5], read[:, :5], atol=1e-6)
    for changed, unchanged in ((4, 0), (0, 4)):
        moved = np.abs(np.asarray(pooled(states.at[:, changed].add(1.0), tokens, segments) - read))
        assert moved[0, unchanged].max() > 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"outputs": 3, "pool": "first", "crf": True}, "crf is for scores of each token"),
        ({"outputs": 3, "pool": "none", "mixer": "attention"}, "head.mixer is a recurrence, not attention"),
        ({"outputs": 3, "pool": "none", "mixer": {"lstm": {"hidden": [6]}}}, "output is 6 wide, model.embed is 8"),
    ],
)
def test_heads_that_cannot_be_computed_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.model_validate({"layers": 1, "embed": 8, "heads": 2, "vocab": 9, "head": settings})
