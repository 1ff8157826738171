"""The causal objective, by hand."""

import numpy as np

from t5x_lite.objectives import Causal
from tests.objectives.vocabulary import row, task


def test_two_documents_and_padding() -> None:
    text = row([11, 12, 1, 21, 22, 1, 0, 0], [1, 1, 1, 2, 2, 2, 0, 0])
    found = Causal().example(text, task(7), np.random.default_rng(0))
    assert found["tokens"].tolist() == [11, 12, 1, 21, 22, 1, 0]
    assert found["targets"].tolist() == [12, 1, 21, 22, 1, 0, 0]
    assert found["positions"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert found["segment_ids"].tolist() == [1, 1, 1, 2, 2, 2, 0]
    assert found["loss_weights"].tolist() == [1, 1, 0, 1, 1, 0, 0]


def test_rows_overlap_by_the_one_token_that_is_only_a_target() -> None:
    assert (Causal().row_length(task(64)), Causal().stride(task(64))) == (65, 64)
