"""Sparse upcycling: the first model of experts computes what the dense one did."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import t5x_lite
from t5x_lite import config as configuration
from t5x_lite.adapt.initial_weights import initial_weights
from t5x_lite.cli import main
from t5x_lite.errors import UserError
from t5x_lite.models.spec import model_spec
from t5x_lite.parallel import mesh as meshes
from t5x_lite.run_dir import with_vocab
from tests.conftest import lines

TOP_2 = {"top_k": {"k": 2}}


@pytest.fixture(scope="module")
def upcycling(tiny_config: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("upcycling") / "upcycling.yaml"
    moe = {"experts": 4, "router": TOP_2, "dispatch": "dropless", "expert": "mlp"}
    settings: dict[str, Any] = {
        "base": str(tiny_config),
        "model": {"pattern": [{"feedforward": "mlp"}, {"feedforward": {"moe": moe}}]},
        "adapt": {"from": str(tiny_run), "method": "upcycle"},
        "train": {"steps": 3},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


def test_it_equals_the_dense_model_at_step_0(upcycling: Path, tiny_run: Path) -> None:
    dense = t5x_lite.load(tiny_run)
    config = with_vocab(configuration.load(upcycling), dense.tokenizer)
    plan = model_spec(config.model)
    params, _ = initial_weights(config, plan, meshes.make_mesh(config.mesh))
    model, tokens = plan.model(params), np.random.default_rng(0).integers(0, 300, (3, 12))
    found = model.logits(model(tokens))
    np.testing.assert_allclose(found, dense.logits(tokens), atol=1e-5)
    experts = params["decoder"]["stack"]["layers"]["1"]["feedforward"]["experts"]["up"]["weight"]
    before = dense.params["decoder"]["stack"]["layers"]["0"]["feedforward"]["up"]["weight"]
    assert experts.shape == (1, 4, *before.shape[1:])
    np.testing.assert_array_equal(experts[0], np.stack([before[1]] * 4))


@pytest.mark.slow
def test_the_command_begins_from_it_and_resumes_its_own_run(
    upcycling: Path, tmp_path: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", str(upcycling), f"run_dir={tmp_path / 'run'}", "eval.every_steps=1"]
    assert main(command) == 0
    assert f"first weights from {tiny_run}" in capsys.readouterr().err
    last = lines(tiny_run)[-1]["eval/loss"]
    assert lines(tmp_path / "run")[0]["loss"] == pytest.approx(last, abs=0.5)  # not the ln 300 = 5.7 of new weights
    assert main(command) == 0
    assert "complete: step 3 of 3" in capsys.readouterr().err  # its own checkpoint, not the dense run's


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.pattern=[{feedforward: {moe: {router: switch}}}]", "weights of this router do not sum to one"),
        ("model.pattern=[{}]", "this model has no experts"),
        ("adapt.from=nowhere", "nowhere: is not a run directory"),
        ("model.embed=16", "its weights do not make this config's model: decoder"),
    ],
)
def test_what_cannot_be_upcycled_is_refused(upcycling: Path, override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        config = configuration.load(upcycling, [override])
        model = config.model.model_copy(update={"vocab": 300})
        initial_weights(config.model_copy(update={"model": model}), model_spec(model), meshes.make_mesh(config.mesh))
