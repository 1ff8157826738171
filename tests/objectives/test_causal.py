"""The causal objective against an example by hand."""

import numpy as np

from t5x_lite.objectives import Causal
from tests.objectives.vocabulary import context, row


def test_targets_do_not_cross_documents_or_padding() -> None:
    packed = row([11, 12, 1, 21, 22, 1, 0, 0], [1, 1, 1, 2, 2, 2, 0, 0])
    features = Causal().example(packed, context(7), np.random.default_rng(0))
    assert features["tokens"].tolist() == [11, 12, 1, 21, 22, 1, 0]
    assert features["targets"].tolist() == [12, 1, 21, 22, 1, 0, 0]
    assert features["positions"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert features["segment_ids"].tolist() == [1, 1, 1, 2, 2, 2, 0]
    assert features["loss_weights"].tolist() == [1, 1, 0, 1, 1, 0, 0]


def test_rows_overlap_by_the_token_that_is_only_a_target() -> None:
    assert (Causal().row_length(context(64)), Causal().stride(context(64))) == (65, 64)
