"""Compare the loss of ten training steps on meshes of 8 simulated devices, in chunks, with that on one device at once.

`python curves_on_meshes.py FAMILY one|all` prints a line for each mesh, and another one where replicas sum their
gradients once in a step; `one` has the latter alone, on one mesh. Run by test_mesh.py in a process of its own,
because the number of devices is fixed when JAX starts.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import jax
import numpy as np
from jaxtyping import Float

from t5x_lite.config import RunConfig
from t5x_lite.models.spec import model_spec
from t5x_lite.objectives.objective import ExampleContext, TokenRow
from t5x_lite.parallel import mesh as meshes
from t5x_lite.planner.example import example_context
from t5x_lite.train.steps import make_steps

STEPS = 10
ROWS = 16
SIZES = {"layers": 4, "embed": 16, "heads": 4, "mlp": 32, "vocab": 64}
EXPERTS = {"moe": {"experts": 4, "router": {"top_k": {"k": 2}}, "dispatch": {"capacity": {"factor": 1.0}}}}
LSTM = {"lstm": {"hidden": [16, 24], "projection": 16}}
MAMBA = {"mamba2": {"head_dim": 8, "state": 4, "chunk": 8}}
DELTA = {"gated_deltanet": {"heads": 4, "key_heads": 2, "key_dim": 4, "chunk": 8}}
DENSE_AND_LOCAL = [{"attention": "dense"}, {"attention": {"local": {"window": 5}}}]


@dataclass(frozen=True)
class Family:
    """One kind of model: its settings, its objective, and the mesh of the quick test."""

    family: str
    objective: str
    quick_mesh: dict[str, int]
    model: dict[str, object] = field(default_factory=dict)
    learning_rate: float = 1e-2


FAMILIES = {
    "decoder": Family(
        "decoder",
        "causal",
        {"data": 2, "fsdp": 2, "context": 2},
        {"pattern": DENSE_AND_LOCAL, "positions": {"rotary": {}}},
    ),
    "encoder_decoder": Family(
        "encoder_decoder",
        "span_corruption",
        {"data": 2, "pipeline": 2, "tensor": 2},
        {"positions": {"relative": {}}, "norm": "rmsnorm", "bias": False},
    ),
    "long_t5": Family(
        "encoder_decoder",
        "span_corruption",
        {"data": 2, "fsdp": 2, "tensor": 2},
        {
            "pattern": [{"attention": {"transient_global": {"window": 3, "block": 4}}}],
            "decoder_attention": ["dense"],
            "positions": {"relative": {}},
            "norm": "rmsnorm",
            "bias": False,
        },
        learning_rate=8e-3,  # at 1e-2 the loss jumps at the seventh step, which enlarges rounding
    ),
    "encoder": Family(
        "encoder",
        "masked",
        {"pipeline": 2, "context": 2, "fsdp": 2},
        {"norm_place": "post", "token_types": 2, "output_transform": True},
    ),
    "experts": Family(
        "decoder",
        "causal",
        {"expert": 2, "context": 2, "pipeline": 2},
        {"pattern": [{}, {"feedforward": EXPERTS}]},
    ),
    "mixers": Family(
        "decoder",
        "causal",
        {"fsdp": 2, "tensor": 2, "context": 2},
        {
            "layers": 6,
            "pattern": [{"mixer": "rg_lru"}, {"mixer": LSTM}, {"mixer": MAMBA}],
            "positions": "none",
        },
    ),
    "gated_deltanet": Family(
        "decoder",
        "causal",
        {"fsdp": 2, "tensor": 2, "context": 2},
        {"pattern": [{"mixer": DELTA}, {}], "positions": "rotary", "attention_output_gate": True},
        learning_rate=5e-3,  # keys are divided by their lengths, which enlarges rounding
    ),
}
MESHES: tuple[dict[str, int], ...] = (
    {"fsdp": 2, "tensor": 2, "context": 2},
    {"data": 2, "pipeline": 2, "tensor": 2},
    {"data": 8},
    {"fsdp": 8},
    {"data": 2, "tensor": 4},
    {"data": 1, "context": 8},
    {"data": 4, "pipeline": 2},
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"data": 2, "fsdp": 2, "context": 2},
    {"pipeline": 2, "context": 2, "fsdp": 2},
)
EXPERT_MESHES: tuple[dict[str, int], ...] = (
    {"data": 2, "expert": 4},
    {"expert": 2, "fsdp": 2, "tensor": 2},
    {"expert": 2, "context": 2, "pipeline": 2},
)


def run_config(family: Family, mesh: dict[str, int], *, reduce_once: bool = False) -> RunConfig:
    accumulation = {"microbatches": 2, "data_reduction": "step"} if reduce_once else {}
    loss_chunks = 2 if mesh else 1
    return RunConfig.model_validate(
        {
            "model": {"family": family.family, **SIZES, **family.model},
            "objective": family.objective,
            "optimizer": {"learning_rate": family.learning_rate},
            "train": {
                "steps": STEPS,
                "batch_size": ROWS,
                "seq_len": 32,
                "loss_chunks": loss_chunks,
                **accumulation,
            },
            "mesh": {"data": 1, **mesh},
        }
    )


def build_batches(config: RunConfig) -> list[dict[str, np.ndarray]]:
    """Build rows of two documents each, in which every token is the successor of the one before: learnable."""
    rng = np.random.default_rng(0)
    context = example_context(config.model, config.train.seq_len)
    batches = []
    for _ in range(STEPS):
        examples = [build_example(config, context, rng) for _ in range(ROWS)]
        batches.append({name: np.stack([example[name] for example in examples]) for name in examples[0]})
    return batches


def build_example(config: RunConfig, context: ExampleContext, rng: np.random.Generator) -> dict[str, np.ndarray]:
    objective = config.require_objective()
    length = objective.row_length(context)
    tokens = ((rng.integers(12, 40) + np.arange(length)) % 30 + 12).astype(np.int32)
    halves = (np.arange(length) >= rng.integers(length // 4, length // 2)).astype(np.int32)
    segments = np.ones_like(halves) if config.model.family == "encoder_decoder" else halves + 1
    row = TokenRow(tokens, segments, halves)
    return dict(objective.example(replace(row, second_sentence=row), context, rng))


def loss_curve(config: RunConfig, devices: Sequence[jax.Device]) -> Float[np.ndarray, "steps"]:
    """Train and return the loss of each step."""
    mesh = meshes.make_mesh(config.mesh, devices)
    losses = []
    with jax.set_mesh(mesh):
        steps = make_steps(config, model_spec(config.model), mesh)
        state = steps.create_state()
        for batch in build_batches(config):
            state, metrics = steps.train(state, meshes.to_global(mesh, batch, ROWS))
            losses.append(float(metrics["loss"]))
    return np.array(losses)


def main(name: str, extent: str) -> None:
    family = FAMILIES[name]
    tested_meshes = [family.quick_mesh]
    if extent == "all":
        tested_meshes = [*MESHES]
        if name == "experts":
            tested_meshes = [*EXPERT_MESHES, *MESHES]
    expected = loss_curve(run_config(family, {}), jax.devices()[:1])
    assert expected[-1] < 0.9 * expected[0], f"nothing is learnt: {expected}"
    for mesh in tested_meshes:
        # Routers need all rows.
        reduces_once = mesh.get("data", 1) > 1 and name != "experts"
        if extent == "all" or not reduces_once:
            check(name, mesh, expected)
        if reduces_once:
            check(name, mesh, expected, reduce_once=True)


def check(name: str, mesh: dict[str, int], expected: Float[np.ndarray, "steps"], *, reduce_once: bool = False) -> None:
    losses = loss_curve(run_config(FAMILIES[name], mesh, reduce_once=reduce_once), jax.devices())
    reduction = "one reduction in a step" if reduce_once else ""
    np.testing.assert_allclose(losses, expected, rtol=1e-5, err_msg=f"{name} on {mesh} {reduction}")
    print("equal", name, mesh, reduction, f"{np.abs(losses / expected - 1).max():.1e}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
