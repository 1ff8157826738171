"""The causal objective, by hand."""

import numpy as np

from t5x_lite.objectives import Causal


def test_two_documents_and_padding() -> None:
    tokens = np.array([11, 12, 1, 21, 22, 1, 0, 0])
    segments = np.array([1, 1, 1, 2, 2, 2, 0, 0])
    row = Causal().example(tokens, segments, np.random.default_rng(0))
    assert row["tokens"].tolist() == [11, 12, 1, 21, 22, 1, 0]
    assert row["targets"].tolist() == [12, 1, 21, 22, 1, 0, 0]
    assert row["positions"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert row["segment_ids"].tolist() == [1, 1, 1, 2, 2, 2, 0]
    assert row["loss_weights"].tolist() == [1, 1, 0, 1, 1, 0, 0]


def test_rows_overlap_by_the_one_token_that_is_only_a_target() -> None:
    assert (Causal().row_length(64), Causal().stride(64)) == (65, 64)
