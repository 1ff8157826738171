"""Ten steps of training on meshes of 8 simulated devices, against one device: the loss of every step.

`python curves_on_meshes.py FAMILY one|all` prints a line for each mesh. Run by test_mesh.py in a process of its own,
because the number of devices is fixed when JAX starts.
"""

import sys
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from t5x_lite.config import RunConfig
from t5x_lite.models.transformer import model_spec
from t5x_lite.objectives.objective import TokenRow
from t5x_lite.parallel import mesh as meshes
from t5x_lite.planner.plan import example_context
from t5x_lite.train.setup import make_steps

STEPS, ROWS = 10, 16
SIZES = {"layers": 4, "embed": 16, "heads": 4, "mlp": 32, "vocab": 64}
EXPERTS = {"moe": {"experts": 4, "router": {"top_k": {"k": 2}}, "dispatch": {"capacity": {"factor": 1.0}}}}
SPARSE = [{"attention": "dense"}, {"attention": {"local": {"window": 5}}}]
FAMILIES: dict[str, tuple[dict[str, Any], str, dict[str, int]]] = {
    "decoder": ({"pattern": SPARSE, "positions": {"rotary": {}}}, "causal", {"fsdp": 2, "tensor": 2, "context": 2}),
    "encoder_decoder": (
        {"positions": {"relative": {}}, "norm": "rmsnorm", "bias": False},
        "span_corruption",
        {"data": 2, "pipeline": 2, "tensor": 2},
    ),
    "encoder": (
        {"norm_place": "post", "token_types": 2, "output_transform": True},
        "masked",
        {"pipeline": 2, "context": 2, "fsdp": 2},
    ),
    "experts": (
        {"pattern": [{}, {"feedforward": EXPERTS}]},
        "causal",
        {"expert": 2, "context": 2, "pipeline": 2},
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
    {"pipeline": 2, "context": 2, "fsdp": 2},
)
WITH_EXPERTS: tuple[dict[str, int], ...] = (
    {"data": 2, "expert": 4},
    {"expert": 2, "fsdp": 2, "tensor": 2},
    {"expert": 2, "context": 2, "pipeline": 2},
)


def run_of(family: str, sizes: dict[str, int]) -> RunConfig:
    model, objective, _ = FAMILIES[family]
    kind = "decoder" if family == "experts" else family
    return RunConfig.model_validate(
        {
            "model": {"family": kind, **SIZES, **model},
            "objective": objective,
            "optimizer": {"learning_rate": 1e-2},
            "train": {"steps": STEPS, "batch_size": ROWS, "seq_len": 32},
            "mesh": {"data": 1, **sizes},
        }
    )


def batches(config: RunConfig) -> list[dict[str, np.ndarray]]:
    """Rows of two documents each, the second token of a pair the first's successor: something to learn."""
    rng, task = np.random.default_rng(0), example_context(config.model, config.train.seq_len)
    length = config.require_objective().row_length(task)

    def example() -> dict[str, np.ndarray]:
        tokens = ((rng.integers(12, 40) + np.arange(length)) % 30 + 12).astype(np.int32)
        halves = (np.arange(length) >= rng.integers(length // 4, length // 2)).astype(np.int32)
        documents = np.ones_like(halves) if config.model.family == "encoder_decoder" else halves + 1
        row = TokenRow(tokens, documents, halves)
        return config.require_objective().example(replace(row, second_sentence=row), task, rng)

    made = [[example() for _ in range(ROWS)] for _ in range(STEPS)]
    return [{name: np.stack([one[name] for one in rows]) for name in rows[0]} for rows in made]


def curve(config: RunConfig, devices: list[Any]) -> np.ndarray:
    """The loss of each step."""
    mesh = meshes.make_mesh(config.mesh, devices)
    with jax.set_mesh(mesh):
        steps = make_steps(config, model_spec(config.model), mesh)
        state, losses = steps.fresh(), []
        for batch in batches(config):
            state, metrics = steps.train(state, meshes.to_global(mesh, batch, ROWS))
            losses.append(float(metrics["loss"]))
    return np.array(losses)


def main(family: str, extent: str) -> None:
    every = (*WITH_EXPERTS, *MESHES) if family == "experts" else MESHES
    expected = curve(run_of(family, {}), jax.devices()[:1])
    assert expected[-1] < 0.9 * expected[0], f"nothing is learnt: {expected}"
    for sizes in (FAMILIES[family][2],) if extent == "one" else every:
        found = curve(run_of(family, sizes), jax.devices())
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=f"{family} on {sizes}")
        print("equal", family, sizes, f"{np.abs(found / expected - 1).max():.1e}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
