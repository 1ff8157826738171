"""The properties of the project's components."""

import numpy as np
import pytest
from my_project.deshuffling import Deshuffling
from my_project.repetition import repeated_share

from t5x_lite import config
from t5x_lite.objectives import ExampleContext, TokenRow, Vocabulary


def test_a_shuffled_window_holds_the_same_tokens_and_the_targets_are_the_text() -> None:
    no_tokens = np.zeros(200, bool)
    context = ExampleContext(16, Vocabulary(200, 1, {}, (), no_tokens, no_tokens), "encoder_decoder")
    text = np.arange(10, 26, dtype=np.int32)
    features = Deshuffling(window=4).example(TokenRow(text, np.ones(16, np.int32)), context, np.random.default_rng(0))
    inputs = features["tokens"].tolist()
    assert features["targets"].tolist() == text.tolist()
    assert inputs != text.tolist()
    for start in range(0, 16, 4):
        assert sorted(inputs[start : start + 4]) == text[start : start + 4].tolist()


def test_repeated_ngrams_are_counted() -> None:
    assert repeated_share(["a", "b", "a", "b"], 2) == pytest.approx(1 / 3)  # a b, b a, a b
    assert repeated_share(["a", "b", "c"], 2) == 0
    assert repeated_share(["a"], 2) == 0


def test_the_config_has_the_components() -> None:
    pretrain = config.load("configs/pretrain.yaml")
    assert isinstance(pretrain.objective, Deshuffling)
