"""Bidirectional language modelling: examples by hand, and models that would see what they predict."""

from typing import Any

import numpy as np
import pytest

from t5x_lite.models.config import ModelConfig
from t5x_lite.objectives.bidirectional_lm import BidirectionalLM
from tests.objectives.vocabulary import context, row

CLS = 3
SEP = 4
LSTM = {"lstm": {"projection": 8, "bidirectional": True, "separate_directions": True}}
MODEL: dict[str, Any] = {
    "family": "encoder",
    "layers": 1,
    "embed": 16,
    "embedding": 8,
    "heads": 1,
    "vocab": 20,
    "token_copies": 2,
    "positions": "none",
    "norm": "none",
    "feedforward": "none",
    "outputs": ["neighbours"],
    "pattern": [{"mixer": LSTM}],
}


def test_each_document_has_special_tokens_and_is_predicted_in_both_directions() -> None:
    objective = BidirectionalLM()
    features = objective.example(row([10, 11, 12], [1, 1, 2]), context(9, "encoder"), np.random.default_rng(0))
    assert features["tokens"].tolist() == [CLS, 10, 11, SEP, CLS, 12, SEP, 0, 0]
    assert features["segment_ids"].tolist() == [1, 1, 1, 1, 2, 2, 2, 0, 0]
    assert features["positions"].tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1]
    targets = np.where(features["loss_weights"] > 0, features["targets"], -1)
    assert targets[:9].tolist() == [10, 11, SEP, -1, 12, SEP, -1, -1, -1]
    assert targets[9:].tolist() == [-1, CLS, 10, 11, -1, CLS, 12, -1, -1]


def test_an_empty_row_has_no_weight_and_documents_take_two_tokens_more() -> None:
    objective = BidirectionalLM()
    settings = context(9, "encoder")
    assert objective.example(row([0], [0]), settings, np.random.default_rng(0))["loss_weights"].sum() == 0
    assert objective.packed_sizes(np.array([[3], [7]]), settings).tolist() == [[5], [9]]
    assert (objective.row_length(settings), objective.row_capacity(settings)) == (7, (9,))
    assert (objective.example_lengths(settings).tokens, objective.example_lengths(settings).predicted) == (9, 18)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"outputs": ["tokens"], "embedding": 16, "token_copies": 1}, r"trains model.outputs=\[neighbours\]"),
        ({"output_transform": True}, "no place for output_transform"),
        ({"feedforward": {"mlp": {}}}, "feedforward: none, which would join the directions"),
        ({"norm": {"layernorm": {}}}, "norm: none; the norm of a state would join"),
        ({"pattern": [{"mixer": {"lstm": {"bidirectional": True}}}]}, "separate_directions: true"),
        ({"pattern": [{}]}, "separate_directions: true"),
        ({"token_copies": 1}, "token_copies: 2 and embedding: 8, found 1 and 8"),
        ({"embedding": 16}, "token_copies: 2 and embedding: 8, found 2 and 16"),
    ],
)
def test_a_model_whose_states_would_see_their_targets_is_refused(settings: dict[str, Any], message: str) -> None:
    objective = BidirectionalLM()
    objective.check(ModelConfig.model_validate(MODEL))
    with pytest.raises(ValueError, match=message):
        objective.check(ModelConfig.model_validate({**MODEL, **settings}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "characters: token vectors without a table need tied: false"),
        ({"tied": False, "embedding_dropout": 0.1}, "characters: embedding_dropout is for a table"),
        ({"tied": False, "characters": {"length": 3}}, "no filter is wider than characters.length"),
        ({"tied": False, "characters": {"filters": [4, 0]}}, "each number is at least 1"),
    ],
)
def test_token_vectors_from_characters_are_refused_where_they_do_not_fit(
    settings: dict[str, Any], message: str
) -> None:
    ModelConfig.model_validate({**MODEL, "tied": False, "characters": {}})
    with pytest.raises(ValueError, match=message):
        ModelConfig.model_validate({**MODEL, "characters": {}, **settings})
