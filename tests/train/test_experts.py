"""Runs with experts: the metrics that they report, resumption, and microbatches, in every family."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_lite.cli import main
from t5x_lite.config import RunConfig
from t5x_lite.models.spec import model_spec
from t5x_lite.parallel import mesh as meshes
from t5x_lite.train.steps import make_steps
from tests.conftest import lines
from tests.train.whole_runs import train

SPECIAL_TOKENS = "tokenizer.unigram.controls=['[CLS]','[SEP]','[MASK]']"
FAMILIES = {
    "decoder": ("{deepseek: {k: 2}}", ()),
    "encoder_decoder": (
        "gshard",
        ("model.positions=relative", "tokenizer.unigram={vocab: 330, extra_ids: 20}", "objective=span_corruption"),
    ),
    "encoder": (
        "expert_choice",
        ("model.output_transform=true", SPECIAL_TOKENS, "objective=masked", "data.packing=none"),
    ),
}
"""By family: the router, and overrides of the config."""
METRICS = {
    "router_balance_loss",
    "router_z_loss",
    "dropped_tokens",
    "expert_load_entropy",
    "expert_load_max",
    "expert_load",
}


def family_overrides(family: str) -> tuple[str, ...]:
    """Return the overrides of a run of four steps whose second layer has experts."""
    router, overrides = FAMILIES[family]
    return (
        f"model.family={family}",
        f"model.pattern=[{{}}, {{feedforward: {{moe: {{experts: 4, router: {router}}}}}}}]",
        "train.microbatches=2",
        "train.steps=4",
        "checkpoint.every_steps=2",
        *overrides,
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_reports_the_loads_of_its_experts(
    family: str, tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    assert train(tiny_config, run_dir, *family_overrides(family)) == 0
    assert "active per token)" in capsys.readouterr().err
    first, *_, last = lines(run_dir)
    assert first.keys() >= METRICS
    assert sum(last["expert_load"]) == pytest.approx(1.0, abs=1e-5)
    assert 0 < last["expert_load_entropy"] <= 1 <= last["expert_load_max"]
    evaluated_metrics = METRICS - {"expert_load"}
    assert {f"eval/{name}" for name in evaluated_metrics} <= last.keys()
    assert main(["report", str(run_dir)]) == 0


@pytest.mark.slow
def test_a_run_with_experts_resumes_with_the_same_losses(
    tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    overrides = family_overrides("decoder")
    assert train(tiny_config, run_dir, *overrides) == 0
    undisturbed_loss = lines(run_dir)[-1]["loss"]
    shutil.rmtree(run_dir / "checkpoints" / "4")
    assert train(tiny_config, run_dir, *overrides) == 0
    assert "resumed from step 2" in capsys.readouterr().err
    assert lines(run_dir)[-1]["loss"] == pytest.approx(undisturbed_loss, abs=1e-6)


def step_metrics(microbatches: int) -> dict[str, np.ndarray]:
    """Return the metrics of the first step of a small decoder with experts on a random batch."""
    moe = {"experts": 4, "router": {"switch": {"jitter": 0.0, "z_loss": 0.01, "balance": 0.1}}}
    config = RunConfig.model_validate(
        {
            "model": {"layers": 1, "embed": 16, "heads": 2, "vocab": 11, "feedforward": {"moe": moe}},
            "train": {"steps": 4, "batch_size": 4, "seq_len": 12, "microbatches": microbatches},
        }
    )
    rng = np.random.default_rng(0)
    ones = np.ones((4, 12), np.int32)
    batch = {
        "tokens": rng.integers(0, 11, (4, 12)),
        "targets": rng.integers(0, 11, (4, 12)),
        "positions": ones * np.arange(12),
        "segment_ids": ones,
        "loss_weights": ones.astype(np.float32),
    }
    mesh = meshes.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        steps = make_steps(config, model_spec(config.model), mesh)
        _, metrics = steps.train(steps.create_state(), jax.tree.map(jnp.asarray, batch))
    return {name: np.asarray(value) for name, value in metrics.items()}


@pytest.mark.slow
def test_microbatches_change_the_metrics_by_rounding_only() -> None:
    """Capacity and balance loss are those of each row, whichever microbatch it is in."""
    metrics_of_two = step_metrics(microbatches=2)
    for name, value in step_metrics(microbatches=1).items():
        np.testing.assert_allclose(metrics_of_two[name], value, rtol=2e-5, atol=1e-6, err_msg=name)
