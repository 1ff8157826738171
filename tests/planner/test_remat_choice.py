"""`model.remat: auto`, against bytes counted by hand."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import jax
import numpy as np
import pytest
import yaml

from t5x_lite import config as configuration
from t5x_lite.cli import main
from t5x_lite.models.config import ModelConfig
from t5x_lite.models.remat_policy import RematPolicy
from t5x_lite.models.spec import model_spec
from t5x_lite.objectives.objective import ExampleLengths
from t5x_lite.parallel.mesh import make_mesh
from t5x_lite.planner.activations import period_activations
from t5x_lite.planner.plan import Plan, plan_least_recomputation
from t5x_lite.planner.remat_choice import choose_remat, resolve_remat
from t5x_lite.planner.topology import Pod
from t5x_lite.planner.workload import Workload

EMBED = 32
LAYERS = 2
TOKENS = 4 * 16
MLP = 4 * EMBED
HEADS = 2
PARAMETERS = LAYERS * (4 * EMBED**2 + 2 * EMBED * MLP + MLP + 9 * EMBED) + 2 * EMBED + 300 * EMBED + 32 * EMBED
"""Of `tiny_config`: 2 layers, 300 tokens, 32 positions."""
SCORE_VALUES = 2 * HEADS * 16 // 2
"""A score and a weight for each key of half the row: no fused kernel is for CPUs."""
LAYER_VALUES = 3 * EMBED + (EMBED + HEADS) + MLP + 2 * EMBED + MLP + 4 * EMBED + SCORE_VALUES
"""Projections, attention with its log-sums, inner product, outputs, its activation, norms, residuals, scores."""
KEPT_VALUES = {
    "none": LAYER_VALUES,
    "dots": EMBED + 3 * EMBED + (EMBED + HEADS) + MLP + 2 * EMBED,
    "save_inner": EMBED + 3 * EMBED + (EMBED + HEADS) + MLP,
    "save_projections": EMBED + 3 * EMBED + (EMBED + HEADS),
    "save_attention": EMBED + (EMBED + HEADS),
    "full": EMBED,
}
EXTRA_BYTES = 100
"""More than the counters of the train state."""


def step_bytes(policy: str) -> int:
    """Return the bytes of weights, two moments, gradients, kept values, one layer, and logits with their gradient.

    Activations count two and a half times, as compiled programs need them.
    """
    activations = TOKENS * (LAYERS * KEPT_VALUES[policy] + LAYER_VALUES + 2 * 300)
    return 4 * (4 * PARAMETERS + activations * 5 // 2) + EXTRA_BYTES


@pytest.mark.parametrize("policy", KEPT_VALUES)
def test_the_least_recomputation_that_fits_is_chosen(policy: str, tiny_config: Path) -> None:
    config = configuration.load(tiny_config, ["model.remat=auto"])
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    assert choose_remat(config, mesh, "cpu", step_bytes(policy)) == policy
    less = step_bytes(policy) - 2 * EXTRA_BYTES
    policies = list(KEPT_VALUES)
    next_policy = policies[min(policies.index(policy) + 1, len(policies) - 1)]
    assert choose_remat(config, mesh, "cpu", less) == next_policy


def test_experts_and_gates_count_by_what_a_token_uses(tiny_config: Path) -> None:
    """Two of four gated experts: a token has two gates and two inner products of the width of an expert."""
    moe = "{moe: {experts: 4, mlp: 48, expert: glu, router: {top_k: {k: 2}}}}"
    config = configuration.load(tiny_config, [f"model.feedforward={moe}", "model.vocab=300"])
    spec = model_spec(config.model)
    workload = Workload(config, spec, ExampleLengths(16, 16), make_mesh(config.mesh, jax.devices()[:1]))
    assert period_activations(workload, "cpu").named["inner_product"] == 2 * 2 * 48


def test_scores_count_where_no_kernel_is_fused(tiny_config: Path) -> None:
    """T5 with 24 inputs and 8 targets: 24² pairs, 8²/2, and 24·8 of cross-attention, in 4 bytes each and again in 2."""
    settings = ["model.family=encoder_decoder", "model.positions=relative", "objective=span_corruption"]
    settings += ["model.vocab=300", "model.compute=bfloat16"]
    config = configuration.load(tiny_config, settings)
    lengths = ExampleLengths(tokens=24, predicted=8, targets=8)
    workload = Workload(config, model_spec(config.model), lengths, make_mesh(config.mesh, jax.devices()[:1]))
    scores = HEADS * (24 * 24 + 8 * 8 / 2 + 24 * 8) / 32 * (4 + 2) / 2
    fused = period_activations(workload, "tpu").every
    assert period_activations(workload, "cpu").every - fused == pytest.approx(scores)


def test_plan_reports_the_choice(tiny_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(tiny_config), "--topology", "h100:1", "--no-compile", "model.vocab=300", "model.remat=auto"]
    assert main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["requested_remat"], report["remat"]) == ("auto", "none")
    assert main(words) == 0
    assert "remat none (auto" in capsys.readouterr().out


def test_plan_writes_the_choice_into_a_config(tiny_config: Path, tmp_path: Path) -> None:
    """The new config has the overrides, the policy and the mesh; a run of it is planned alike."""
    emitted = tmp_path / "planned" / "run.yaml"
    words = ["plan", str(tiny_config), "--topology", "h100:1", "--no-compile", "model.vocab=300", "model.remat=auto"]
    assert main([*words, "--emit", str(emitted)]) == 0
    planned = configuration.load(emitted)
    assert (planned.model.vocab, planned.model.remat) == (300, "none")
    assert (planned.mesh.fsdp, planned.plan.topology) == (1, "h100:1")
    assert main([*words, "--emit", str(tiny_config)]) == 2
    too_large = tmp_path / "large.yaml"
    assert main([*words, "train.batch_size=4194304", "--emit", str(too_large)]) == 1
    assert not too_large.exists()


def test_a_run_takes_92_percent_and_a_resumed_run_keeps_its_policy(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration.load(tiny_config, ["model.remat=auto", f"run_dir={tmp_path}"])
    size = step_bytes("save_projections")

    def resolve_with(size: float) -> ModelConfig:
        monkeypatch.setattr("t5x_lite.parallel.memory.host_memory", lambda: math.ceil(size))
        return resolve_remat(config).model

    assert resolve_with(size / 0.92).remat == "save_projections"
    assert resolve_with((size - 2 * EXTRA_BYTES) / 0.92).remat == "save_attention"
    for stored in ("full", "offload"):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": {"remat": stored}}))
        assert resolve_with(1e12).remat == stored


@pytest.mark.parametrize("policy", ["offload", "save_attention"])
def test_all_processes_have_the_policy_of_the_first(
    policy: RematPolicy, tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, of which the first alone sees the stored policy; all take part in the broadcast."""
    config = configuration.load(tiny_config, ["model.remat=auto", f"run_dir={tmp_path}"])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": {"remat": policy}}))
    sent: list[np.ndarray] = []

    def broadcast(number: np.ndarray) -> np.ndarray:
        sent.append(number)
        return sent[0]

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr("jax.experimental.multihost_utils.broadcast_one_to_all", broadcast)
    first = resolve_remat(config)
    (tmp_path / "config.yaml").unlink()
    second = resolve_remat(config)
    assert first.model.remat == second.model.remat == policy
    assert len(sent) == 2


def test_offload_is_refused_for_devices_without_pinned_host_memory(
    tiny_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("t5x_lite.parallel.memory.memory_kinds", lambda device: {"device"})
    assert main(["train", str(tiny_config), "model.remat=offload"]) == 2
    assert "model.remat offload: cpu has no pinned_host memory in JAX; take full, or auto" in capsys.readouterr().err


GIBIBYTES_BY_POLICY = {"none": 20, "dots": 14, "save_inner": 13, "save_projections": 11, "save_attention": 9, "full": 5}


@pytest.mark.parametrize(
    ("first", "available", "expected"),
    [
        ("save_projections", 15, "dots"),
        ("save_projections", 13.5, "save_inner"),
        ("none", 10, "save_attention"),
        ("save_inner", 6, "full"),
        ("none", 4, "full"),
        ("none", 30, "none"),
    ],
)
def test_plan_compiles_towards_what_fits(first: RematPolicy, available: float, expected: str) -> None:
    """The programs of the policies take as much as `GIBIBYTES_BY_POLICY` says, whatever the formula says."""

    def plan_policy(policy: RematPolicy) -> Plan:
        return cast(Plan, SimpleNamespace(remat=policy, memory_bytes=GIBIBYTES_BY_POLICY[policy]))

    pod = Pod(devices=(), device_kind="TPU v5 lite", platform="tpu", can_compile=True)
    assert plan_least_recomputation(plan_policy, first, available, pod).remat == expected
