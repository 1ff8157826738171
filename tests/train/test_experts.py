"""Runs with experts: what they report, resumed and in microbatches; every kind of model."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite import schema
from t5x_lite.cli import main
from t5x_lite.config import MeshConfig, RunConfig
from t5x_lite.models.spec import model_spec
from t5x_lite.parallel import mesh as meshes
from t5x_lite.train.steps import make_steps
from tests.conftest import lines

CONTROLS = "tokenizer.unigram.controls=['[CLS]','[SEP]','[MASK]']"
RUNS = {
    "decoder": ("deepseek: {k: 2}", []),
    "encoder_decoder": (
        "gshard",
        ["model.positions=relative", "tokenizer.unigram={vocab: 330, extra_ids: 20}", "objective=span_corruption"],
    ),
    "encoder": (
        "expert_choice",
        ["model.output_transform=true", CONTROLS, "objective=masked", "data.packing=none"],
    ),
}
METRICS = {
    "router_balance_loss",
    "router_z_loss",
    "dropped_tokens",
    "expert_load_entropy",
    "expert_load_max",
    "expert_load",
}


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.slow) for name in ("decoder", "encoder_decoder", "encoder")]
)
def test_a_run_reports_its_experts_and_resumes(
    family: str, tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    router, more = RUNS[family]
    pattern = f"[{{}}, {{feedforward: {{moe: {{experts: 4, router: {{{router}}}}}}}}}]"
    pattern = pattern.replace("{gshard}", "gshard").replace("{expert_choice}", "expert_choice")
    given = [f"model.family={family}", f"model.pattern={pattern}", "train.microbatches=2", *more]
    run = tmp_path / "run"
    command = ["train", str(tiny_config), f"run_dir={run}", "train.steps=4", "checkpoint.every_steps=2", *given]
    assert main(command) == 0
    assert "of which a token passes" in capsys.readouterr().err
    first, *_, last = lines(run)
    assert first.keys() >= METRICS
    assert sum(last["expert_load"]) == pytest.approx(1.0, abs=1e-5)
    assert 0 < last["expert_load_entropy"] <= 1 <= last["expert_load_max"]
    assert {f"eval/{name}" for name in METRICS - {"expert_load"}} <= last.keys()
    assert main(["report", str(run)]) == 0
    if family == "decoder":
        straight = lines(run)[-1]["loss"]
        shutil.rmtree(run / "checkpoints" / "4")
        assert main(command) == 0
        assert "resumed from step 2" in capsys.readouterr().err
        assert lines(run)[-1]["loss"] == pytest.approx(straight, abs=1e-6)


@pytest.mark.slow
def test_microbatches_change_rounding_alone() -> None:
    """Room and balance are of each row, so that cutting the batch leaves them as they are."""
    moe = {"experts": 4, "router": {"switch": {"jitter": 0.0, "z_loss": 0.01, "balance": 0.1}}}
    found = {}
    for parts in (1, 2):
        settings: dict[str, Any] = {
            "model": {"layers": 1, "embed": 16, "heads": 2, "vocab": 11, "feedforward": {"moe": moe}},
            "train": {"steps": 4, "batch_size": 4, "seq_len": 12, "microbatches": parts},
        }
        config = schema.validate(RunConfig, schema.Sources(settings, {}))
        mesh = meshes.make_mesh(MeshConfig())
        rng = np.random.default_rng(0)
        ones = np.ones((4, 12), np.int32)
        batch = {
            "tokens": rng.integers(0, 11, (4, 12)),
            "targets": rng.integers(0, 11, (4, 12)),
            "positions": ones * np.arange(12),
            "segment_ids": ones,
            "loss_weights": ones.astype(np.float32),
        }
        with jax.set_mesh(mesh):
            steps = make_steps(config, model_spec(config.model), mesh)
            _, metrics = steps.train(steps.create_state(), jax.tree.map(jnp.asarray, batch))
        found[parts] = {name: np.asarray(value) for name, value in metrics.items()}
    for name, value in found[1].items():
        np.testing.assert_allclose(found[2][name], value, rtol=2e-5, atol=1e-6, err_msg=name)
