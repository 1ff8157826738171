"""Sequence autoencoding: a text, its end, and the text again, of which the second part is predicted."""

import numpy as np
import pytest

from t5x_lite.models.config import ModelConfig
from t5x_lite.objectives.sequence_autoencoder import SequenceAutoencoder
from tests.objectives.vocabulary import context, row

EOS = 1


def test_the_second_copy_of_each_text_is_predicted_from_the_end_of_the_first() -> None:
    features = SequenceAutoencoder().example(row([10, 11, 12], [1, 1, 2]), context(10), np.random.default_rng(0))
    assert features["tokens"].tolist() == [10, 11, EOS, 10, 11, 12, EOS, 12, 0, 0]
    assert features["segment_ids"].tolist() == [1, 1, 1, 1, 1, 2, 2, 2, 0, 0]
    assert features["positions"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 0, 1]
    targets = np.where(features["loss_weights"] > 0, features["targets"], -1)
    assert targets.tolist() == [-1, -1, 10, 11, EOS, -1, 12, EOS, -1, -1]


def test_texts_fit_twice_in_a_row() -> None:
    objective = SequenceAutoencoder()
    for seq_len, longest in ((9, 4), (10, 4), (11, 5)):
        settings = context(seq_len)
        assert objective.row_length(settings) == longest
        features = objective.example(row(list(range(10, 10 + longest))), settings, np.random.default_rng(0))
        assert features["loss_weights"].sum() == longest + 1
        assert objective.packed_sizes(np.array([[longest]]), settings).tolist() == [[2 * longest + 1]]
        assert objective.row_capacity(settings) == (seq_len,)
    assert objective.example(row([0], [0]), context(9), np.random.default_rng(0))["loss_weights"].sum() == 0


def test_attention_which_would_copy_is_refused() -> None:
    sizes = {"layers": 2, "embed": 16, "heads": 2}
    SequenceAutoencoder().check(ModelConfig.model_validate({**sizes, "pattern": [{"mixer": "lstm"}]}))
    with pytest.raises(ValueError, match="attention, which would copy it"):
        SequenceAutoencoder().check(ModelConfig.model_validate({**sizes, "pattern": [{"mixer": "lstm"}, {}]}))
