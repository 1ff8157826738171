"""Two encoders: both begin as the adapted run, both train, and each reads its side."""

from pathlib import Path

import numpy as np
import pytest

import t5x_lite
from t5x_lite import config as configuration
from t5x_lite.cli import main
from t5x_lite.errors import UserError
from t5x_lite.models.spec import model_spec
from t5x_lite.objectives.passages import Passage
from t5x_lite.retrieval.encoder import VectorEncoder
from t5x_lite.run_weights import initial_weights
from t5x_lite.trees import flatten_names
from tests.retrieval.conftest import passage


@pytest.mark.slow
def test_both_towers_begin_as_the_adapted_run_and_train(
    retriever_run: Path, retriever_config: Path, collection: Path, tmp_path: Path
) -> None:
    overrides = [f"adapt.from={retriever_run}", "adapt.method=two_towers", f"run_dir={tmp_path / 'run'}"]
    overrides += ["train.steps=2", "optimizer.warmup_steps=0"]
    base = t5x_lite.load(retriever_run)
    config = configuration.load(retriever_config, overrides)
    config = config.model_copy(update={"model": base.config.model})
    weights, _ = initial_weights(config, model_spec(config.model, config.method.surgery), base.mesh)
    towers = flatten_names(weights)
    base_weights = flatten_names(base.params)
    assert len(towers) == 2 * len(base_weights)
    for name, value in base_weights.items():
        np.testing.assert_array_equal(towers[name], value)
        np.testing.assert_array_equal(towers[f"passage_encoder.{name}"], value)

    assert main(["train", str(retriever_config), *overrides]) == 0
    texts = [passage(number) for number in range(4)]
    trained = VectorEncoder(t5x_lite.load(tmp_path / "run"))
    before = VectorEncoder(base).queries(texts)
    queries = trained.queries(texts)
    passages = trained.passages([Passage(text) for text in texts])
    for first, second in ((queries, before), (passages, before), (queries, passages)):
        assert np.abs(first - second).max() > 1e-3
    index = ["index", str(tmp_path / "run"), str(collection / "passages.jsonl"), str(tmp_path / "index")]
    assert main(index) == 0
    assert main(["search", str(tmp_path / "run"), str(tmp_path / "index"), "--query", texts[0]]) == 0


def test_towers_are_for_retrieval_alone(retriever_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "masked.yaml"
    path.write_text(f"adapt: {{from: {retriever_run}, method: two_towers}}\nmodel: {{head: null, outputs: [tokens]}}\n")
    with pytest.raises(UserError, match="two_towers is for the objective retrieval"):
        configuration.load(path, ["objective=masked", "train={steps: 1, batch_size: 2, seq_len: 16}"])
