"""Examples that are made without text and without a tokenizer."""

import pytest

from t5x_lite import config as configuration
from t5x_lite.planner.example import example_features
from tests.conftest import REPOSITORY

CONFIGS = REPOSITORY / "configs"


@pytest.mark.parametrize(
    "name", ["gpt3/1.3b", "t5/base", "bert/base", "electra/base", "switch/base_8", "transformer/base"]
)
def test_every_kind_of_config_has_features_without_text_or_tokenizer(name: str) -> None:
    config = configuration.load(CONFIGS / f"{name}.yaml")
    features = example_features(config)
    assert features["tokens"].shape == (config.train.seq_len,)
    assert any(weights.sum() > 0 for key, weights in features.items() if key.endswith("_weights"))
