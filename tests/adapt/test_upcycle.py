"""Sparse upcycling: the first Mixture-of-Experts model computes what the dense model did."""

from pathlib import Path

import numpy as np
import pytest
import yaml

import t5x_lite
from t5x_lite import config as configuration
from t5x_lite.cli import main
from t5x_lite.errors import UserError
from t5x_lite.models.spec import model_spec
from t5x_lite.parallel import mesh as meshes
from t5x_lite.run_dir import with_vocab
from t5x_lite.run_weights import initial_weights
from tests.conftest import lines


@pytest.fixture(scope="module")
def upcycling_config(tiny_config: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a config whose second layer has four experts, which begin as copies of the feed-forward."""
    path = tmp_path_factory.mktemp("upcycling") / "upcycling.yaml"
    moe = {"experts": 4, "router": {"top_k": {"k": 2}}, "dispatch": "dropless", "expert": "mlp"}
    settings = {
        "base": str(tiny_config),
        "model": {"pattern": [{"feedforward": "mlp"}, {"feedforward": {"moe": moe}}]},
        "adapt": {"from": str(tiny_run), "method": "upcycle"},
        "train": {"steps": 3},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


def test_the_first_logits_equal_those_of_the_dense_model(upcycling_config: Path, tiny_run: Path) -> None:
    dense = t5x_lite.load(tiny_run)
    config = with_vocab(configuration.load(upcycling_config), dense.tokenizer)
    spec = model_spec(config.model)
    params, _ = initial_weights(config, spec, meshes.make_mesh(config.mesh))
    module = spec.model(params)
    tokens = np.random.default_rng(0).integers(0, 300, (3, 12))
    np.testing.assert_allclose(module.logits(module(tokens)), dense.logits(tokens), atol=1e-5)
    experts = params["decoder"]["stack"]["layers"]["1"]["feedforward"]["experts"]["up"]["weight"]
    dense_weight = dense.params["decoder"]["stack"]["layers"]["0"]["feedforward"]["up"]["weight"]
    assert experts.shape == (1, 4, *dense_weight.shape[1:])
    np.testing.assert_array_equal(experts[0], np.stack([dense_weight[1]] * 4))


@pytest.mark.slow
def test_a_run_begins_with_upcycled_weights_and_resumes_from_its_checkpoints(
    upcycling_config: Path, tmp_path: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    command = ["train", str(upcycling_config), f"run_dir={run_dir}", "eval.every_steps=1"]
    assert main(command) == 0
    assert f"first weights from {tiny_run}" in capsys.readouterr().err
    dense_loss = lines(tiny_run)[-1]["eval/loss"]
    # New weights would have a loss of ln 300 = 5.7.
    assert lines(run_dir)[0]["loss"] == pytest.approx(dense_loss, abs=0.5)
    assert main(command) == 0
    # The dense run has a checkpoint of step 12, this run one of step 3.
    assert "complete: step 3 of 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.pattern=[{feedforward: {moe: {router: switch}}}]", "weights of this router do not sum to one"),
        ("model.pattern=[{}]", "this model has no experts"),
        (
            "model.pattern=[{feedforward: {moe: {router: top_k, expert: {mlp: {activation: relu}}}}}]",
            r"compute another function than its feed-forward; set their `expert` to {mlp: {activation: gelu_tanh}}",
        ),
        ("adapt.from=nowhere", "nowhere: is not a run directory"),
        ("model.embed=16", "its weights do not make this config's model: model.embed is 32 there, 16 here$"),
    ],
)
def test_a_model_that_cannot_be_upcycled_is_refused(upcycling_config: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config = configuration.load(upcycling_config, [override])
        model = config.model.model_copy(update={"vocab": 300})
        initial_weights(config.model_copy(update={"model": model}), model_spec(model), meshes.make_mesh(config.mesh))
