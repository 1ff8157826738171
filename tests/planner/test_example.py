"""Examples that are made without text and without a tokenizer."""

from pathlib import Path

import pytest

from t5x_lite import config as configuration
from t5x_lite.errors import UserError
from t5x_lite.planner.example import example_features
from tests.conftest import REPOSITORY

CONFIGS = REPOSITORY / "configs"


@pytest.mark.parametrize(
    "name",
    [
        "gpt3/1.3b",
        "t5/base",
        "bert/base",
        "electra/base",
        "switch/base_8",
        "transformer/base",
        "long_t5/base",
        "transformer_xl/enwik8_12l",
        "xlnet/base",
    ],
)
def test_every_kind_of_config_has_features_without_text_or_tokenizer(name: str) -> None:
    config = configuration.load(CONFIGS / f"{name}.yaml")
    features = example_features(config)
    assert features["tokens"].shape == (config.train.seq_len,)
    assert any(weights.sum() > 0 for key, weights in features.items() if key.endswith("_weights"))
    assert ("continues" in features) == (config.data.order == "consecutive")


def test_features_that_depend_on_records_are_refused(tiny_run: Path) -> None:
    settings = [f"adapt.from={tiny_run}", "tasks=reward", "task_form=head", "model.vocab=300"]
    config = configuration.load(CONFIGS / "quickstart.yaml", settings)
    with pytest.raises(UserError, match=r"the shapes of objective reward depend on records; add --no-compile"):
        example_features(config)


def test_rows_of_more_spans_than_sentinels_are_refused_as_in_training() -> None:
    """Of L tokens 0.15 L are noise, in 0.05 L spans: 0.9 L + 1 = 4096 of input come from 4550, with 227 spans."""
    long_rows = ["train.seq_len=4096"]
    with pytest.raises(UserError, match=r"up to 227 spans.*at least 228"):
        example_features(configuration.load(CONFIGS / "t5/base.yaml", long_rows))
    more_sentinels = [*long_rows, "tokenizer.unigram.extra_ids=300"]
    features = example_features(configuration.load(CONFIGS / "t5/base.yaml", more_sentinels))
    assert features["tokens"].shape == (4096,)
