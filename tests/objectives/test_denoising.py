"""BART's denoising against its definition (Lewis et al. 2020, §2.2)."""

import math
from itertools import pairwise

import numpy as np
import pytest

from t5x_lite.errors import UserError
from t5x_lite.objectives import ExampleContext
from t5x_lite.objectives.denoising import Denoising, draw_spans
from tests.objectives.vocabulary import context, row, vocabulary

CLS, SEP, MASK = 3, 4, 5
START = 1
CONTEXT = ExampleContext(66, vocabulary(), "encoder_decoder", start_token=START)
TEXT = np.arange(10, 70)


def without_special_tokens(tokens: np.ndarray) -> list[int]:
    real = tokens[tokens > 0].tolist()
    assert real[0] == CLS
    assert real[-1] == SEP
    return real[1:-1]


def test_spans_are_hidden_behind_one_mask_each_and_the_text_is_the_target() -> None:
    objective = Denoising(permute_sentences=False)
    features = objective.example(row(TEXT), CONTEXT, np.random.default_rng(0))
    inputs = without_special_tokens(features["tokens"])
    shown = [token for token in inputs if token != MASK]
    assert shown == sorted(set(shown))
    assert len(TEXT) - len(shown) == 18  # 30 % of 60
    assert 1 <= inputs.count(MASK) <= 18
    targets = features["targets"][:62].tolist()
    assert targets == [CLS, *TEXT.tolist(), SEP]
    assert features["decoder_tokens"][:62].tolist() == [START, CLS, *TEXT.tolist()]
    assert features["loss_weights"].sum() == 62


def test_every_kind_of_gap_is_masked_once() -> None:
    """Between two shown tokens that do not follow each other in the text there is a mask."""
    objective = Denoising(permute_sentences=False)
    for seed in range(20):
        features = objective.example(row(TEXT), CONTEXT, np.random.default_rng(seed))
        inputs = without_special_tokens(features["tokens"])
        for left, right in pairwise(inputs):
            assert MASK in {left, right} or right == left + 1


def test_lengths_of_spans_are_those_of_a_poisson_distribution() -> None:
    spans = draw_spans(1_000_000, 0.3, 3.0, np.random.default_rng(0))
    assert spans.sum() == 300_000
    assert spans.mean() == pytest.approx(3.0, rel=0.02)
    for length in range(6):
        expected = math.exp(-3) * 3**length / math.factorial(length)
        assert np.mean(spans == length) == pytest.approx(expected, abs=0.005)


def test_sentences_are_permuted_as_a_unit() -> None:
    parts = np.repeat([0, 1, 2, 3], 15)
    text = row(TEXT, parts=parts.tolist())
    orders = set()
    for seed in range(40):
        features = Denoising(noise_density=0.01).example(text, CONTEXT, np.random.default_rng(seed))
        inputs = [token for token in without_special_tokens(features["tokens"]) if token != MASK]
        sentences = [(token - 10) // 15 for token in inputs]
        order = tuple(dict.fromkeys(sentences))
        assert sentences == [sentence for sentence in order for _ in range(sentences.count(sentence))]
        assert features["targets"][1:61].tolist() == TEXT.tolist()
        orders.add(order)
    assert len(orders) > 12  # of 24


@pytest.mark.parametrize("mean_span", [0.1, 3.0])
def test_inputs_are_never_longer_than_the_text(mean_span: float) -> None:
    objective = Denoising(mean_span=mean_span, noise_density=0.5, permute_sentences=False)
    for seed in range(20):
        for length in (1, 2, 5, 60):
            features = objective.example(row(TEXT[:length]), CONTEXT, np.random.default_rng(seed))
            assert MASK in without_special_tokens(features["tokens"])
            assert len(without_special_tokens(features["tokens"])) <= length


def test_packed_documents_are_segments_and_empty_rows_have_no_loss() -> None:
    objective = Denoising(permute_sentences=False)
    lengths = np.array([[20], [30]])
    assert objective.packed_sizes(lengths, CONTEXT).tolist() == [[22, 22], [32, 32]]
    packed = row(TEXT[:50], segments=[1] * 20 + [2] * 30)
    features = objective.example(packed, CONTEXT, np.random.default_rng(0))
    assert features["decoder_segment_ids"].tolist() == [1] * 22 + [2] * 32 + [0] * 12
    assert features["decoder_tokens"][22] == START
    assert set(features["segment_ids"].tolist()) == {0, 1, 2}
    empty = objective.example(row([0] * 64, segments=[0] * 64), CONTEXT, np.random.default_rng(0))
    assert empty["loss_weights"].sum() == 0


def test_a_row_without_room_is_refused() -> None:
    with pytest.raises(UserError, match="leaves no room for a text"):
        Denoising().check_context(context(2, "encoder_decoder"))
