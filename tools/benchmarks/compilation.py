"""Compilation time by depth: the compiler sees a scanned stack as one layer."""

import time
from statistics import median
from typing import Any, cast

import jax

from benchmarks.step import CONFIGS
from t5x_lite import config as configuration
from t5x_lite.models.spec import model_spec
from t5x_lite.parallel import mesh as meshes
from t5x_lite.planner.example import example_features
from t5x_lite.train.steps import make_steps

DEPTHS = (12, 96)
ROUNDS = 3
OVERRIDES = (
    "model.embed=64",
    "model.heads=4",
    "model.vocab=512",
    "train.batch_size=8",
    "train.seq_len=128",
)


def measure(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Measure lowering and compilation of the train step of a narrow GPT, by its number of layers."""
    times: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    for _ in range(ROUNDS):
        for depth in DEPTHS:
            times[depth].append(_compilation_seconds(depth))
    shallowest = median(times[DEPTHS[0]])
    rows = []
    for depth, seconds in times.items():
        row = {
            "layers": depth,
            "compilation, s": median(seconds),
            f"of {DEPTHS[0]} layers": median(seconds) / shallowest,
        }
        rows.append(row)
    return rows


def _compilation_seconds(depth: int) -> float:
    config = configuration.load(CONFIGS / "gpt2/117m.yaml", [f"model.layers={depth}", *OVERRIDES])
    mesh = meshes.make_mesh(config.mesh)
    jax.clear_caches()
    with jax.set_mesh(mesh):
        steps = make_steps(config, model_spec(config.model), mesh)
        train_step = cast(jax.stages.Wrapped, steps.train)
        shapes = meshes.batch_shapes(mesh, example_features(config), config.train.batch_size)
        started = time.perf_counter()
        train_step.lower(steps.state, shapes).compile()
        return time.perf_counter() - started
